import pytest
import torch
from transformers import AutoTokenizer

from ossicle.batch import Padded
from ossicle.models.llm import LLM, load_llm
from ossicle.models.packing import LONG
from ossicle.testing import LLMS, tiny_llm

LAYERS = 3


@pytest.fixture(params=LLMS)
def llm(request, folders) -> LLM:
    return load_llm(str(folders[request.param]))


@pytest.fixture
def llama(folders) -> LLM:
    return load_llm(str(folders["llama"]))


def inputs(llm: LLM, lengths: list[int], seed: int = 0, *, left: bool = False) -> Padded:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (len(lengths), max(lengths)), generator=generator)
    positions = torch.arange(max(lengths))
    mask = positions < torch.tensor(lengths)[:, None]
    return Padded(llm.embed(ids), mask.flip(1) if left else mask)


def calls_of(modules) -> list[int]:
    """Count the calls of each module from now on."""
    counts = [0] * len(modules)

    def count(index: int):
        def hook(*_) -> None:
            counts[index] += 1

        return hook

    for index, module in enumerate(modules):
        module.register_forward_hook(count(index))
    return counts


@pytest.mark.parametrize("lengths", [[9, 4], [2 * LONG, LONG // 2]], ids=["as a batch", "one by one"])
def test_hidden_states_are_those_of_transformers(llm, lengths):
    embeds = inputs(llm, lengths)
    with torch.no_grad():
        expected = llm.model(
            inputs_embeds=embeds.values, attention_mask=embeds.mask.long(), output_hidden_states=True
        ).hidden_states
    assert len(expected) == LAYERS + 1
    ours = llm.hidden_states(embeds, range(LAYERS + 1)).states
    for layer in range(LAYERS + 1):
        alone = llm.hidden_states(embeds, [layer])
        for states in (ours[layer], alone.states[layer]):
            torch.testing.assert_close(states[embeds.mask], expected[layer][embeds.mask], atol=1e-6, rtol=1e-5)
        assert list(alone.states) == [layer]
        assert torch.equal(alone.mask, embeds.mask)


@pytest.mark.parametrize("order", [[[2], [0, 1, 3], [1], [2]], [[3], [1, 2], [3]], [[1], [2], [1, 3]]])
def test_hidden_states_do_not_depend_on_earlier_calls(llm, order):
    embeds = inputs(llm, [9, 4])
    fresh = load_llm(llm.name)
    with torch.no_grad():
        expected = fresh.model(
            inputs_embeds=embeds.values, attention_mask=embeds.mask.long(), output_hidden_states=True
        ).hidden_states
    for layers in order:
        states = llm.hidden_states(embeds, layers).states
        assert list(states) == layers
        for layer in layers:
            torch.testing.assert_close(states[layer][embeds.mask], expected[layer][embeds.mask], atol=1e-6, rtol=1e-5)


def test_padding_does_not_reach_valid_positions(llm):
    embeds = inputs(llm, [9, 4])
    together = llm.hidden_states(embeds, [2, LAYERS]).states
    alone = llm.hidden_states(Padded(embeds.values[1:, :4], embeds.mask[1:, :4]), [2, LAYERS]).states
    for layer in (2, LAYERS):
        torch.testing.assert_close(together[layer][1, :4], alone[layer][0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("last", range(LAYERS + 1))
def test_nothing_above_the_last_layer_asked_for_runs(llm, last):
    embeds = inputs(llm, [5])
    counts = calls_of([*llm.model.base_model.layers, llm.model.base_model.norm, llm.model.lm_head])
    llm.hidden_states(embeds, {0, last})
    assert counts == [1] * last + [0] * (LAYERS - last) + [int(last == LAYERS), 0]


def test_the_trunk_shares_its_weights(llama):
    embeds = inputs(llama, [5])
    before = llama.hidden_states(embeds, [1]).states[1]
    names = set(llama.state_dict())
    with torch.no_grad():
        llama.model.base_model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(llama.hidden_states(embeds, [1]).states[1], before)
    assert set(llama.state_dict()) == names
    assert llama.model.config.num_hidden_layers == len(llama.model.base_model.layers) == LAYERS


@pytest.mark.parametrize("layers", [[4], [-1], [0, 7], []])
def test_a_layer_that_is_not_there_is_an_error(llama, layers):
    with pytest.raises(ValueError, match=r"has hidden states 0\.\.3"):
        llama.hidden_states(inputs(llama, [3]), layers)


@pytest.mark.parametrize("lengths", [[6, 3], [2 * LONG, LONG // 2]], ids=["as a batch", "one by one"])
def test_gradients_reach_the_input_and_no_weight(llm, lengths):
    embeds = inputs(llm, lengths)
    values = embeds.values.detach().requires_grad_()
    hidden = llm.hidden_states(Padded(values, embeds.mask), [LAYERS])
    hidden.states[LAYERS][hidden.mask].square().sum().backward()
    assert (values.grad[embeds.mask].abs().sum(-1) > 0).all()
    assert (values.grad[~embeds.mask] == 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in llm.parameters())


def test_packing_keeps_less_for_the_backward_pass_than_transformers(llama):
    embeds = inputs(llama, [40, 40, 40])
    embeds.values.requires_grad_()
    weights = {parameter.data_ptr() for parameter in llama.model.parameters()}

    def kept(forward) -> int:
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            forward()
        return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights)

    def theirs() -> None:
        llama.model.base_model(inputs_embeds=embeds.values, output_hidden_states=True, use_cache=False)

    assert kept(lambda: llama.hidden_states(embeds, range(llama.num_layers + 1))) < kept(theirs)


@pytest.mark.parametrize("layers", [[LAYERS], [1, 2]])
def test_gradient_checkpointing_changes_memory_only(folders, layers):
    def loss_and_gradient(checkpointed: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
        llm = load_llm(str(folders["llama"]))
        if checkpointed:
            llm.checkpoint_gradients()
        llm.train()
        embeds = inputs(llm, [7, 4])
        values = embeds.values.detach().requires_grad_()
        counts = calls_of([llm.model.base_model.layers[0].self_attn])
        states = llm.hidden_states(Padded(values, embeds.mask), layers).states
        loss = torch.stack([state[embeds.mask].square().mean() for state in states.values()]).sum()
        loss.backward()
        return loss.detach(), values.grad, counts[0]

    plain, checkpointed = loss_and_gradient(False), loss_and_gradient(True)
    torch.testing.assert_close(plain[:2], checkpointed[:2])
    assert (plain[2], checkpointed[2]) == (1, 2)  # the layer ran again in the backward pass


def test_checkpointed_llms_stay_in_evaluation_mode_and_generate(llama):
    prompt = inputs(llama, [5])
    expected = llama.generate(prompt, max_new_tokens=8)
    llama.checkpoint_gradients()
    llama.train()
    inside = [module for layer in llama.model.base_model.layers for module in list(layer.modules())[1:]]
    assert not any(module.training for module in inside)
    llama.eval()
    assert llama.generate(prompt, max_new_tokens=8) == expected


def test_logits_are_the_heads(llm):
    embeds = inputs(llm, [6])
    last = llm.hidden_states(embeds, [LAYERS]).states[LAYERS]
    expected = llm.model(inputs_embeds=embeds.values).logits
    torch.testing.assert_close(llm.logits(last[0]), expected[0], atol=1e-6, rtol=1e-5)


def test_generating_in_a_batch_equals_one_by_one(llm):
    together = inputs(llm, [9, 4, 6], left=True)
    texts = llm.generate(together, max_new_tokens=12)
    for row, length in enumerate([9, 4, 6]):
        alone = Padded(together.values[row : row + 1, -length:], together.mask[row : row + 1, -length:])
        assert llm.generate(alone, max_new_tokens=12) == [texts[row]]
    assert len(set(texts)) > 1


def test_greedy_decoding_picks_the_likeliest_next_token(llm):
    prompt = inputs(llm, [5])
    ids = []
    for _ in range(6):
        embeds = torch.cat([prompt.values, llm.embed(torch.tensor([ids], dtype=torch.long))], 1)
        ids.append(int(llm.model(inputs_embeds=embeds).logits[0, -1].argmax()))
        if ids[-1] in llm.stop_ids:
            break
    expected = llm.tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0].strip()
    assert llm.generate(prompt, max_new_tokens=6) == [expected]


@pytest.fixture
def counter(llama) -> LLM:
    """Return an LLM that predicts token n + 1 after token n, so that its answers are known."""
    model = llama.model
    with torch.no_grad():
        for layer in model.base_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        directions = torch.randn(len(llama.tokenizer), 32, generator=torch.Generator().manual_seed(0))
        directions = torch.nn.functional.normalize(directions)
        model.base_model.embed_tokens.weight.copy_(directions)
        model.lm_head.weight.copy_(directions.roll(1, dims=0))
    return llama


def after(llm: LLM, text: str) -> Padded:
    ids = torch.tensor([llm.tokenizer(text, add_special_tokens=False).input_ids])
    return Padded(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))


def test_the_counter_counts(counter):
    assert counter.generate(after(counter, "ab"), max_new_tokens=4) == ["cdef"]


def test_generation_stops_at_the_end_of_the_turn(counter):
    tokenizer = counter.tokenizer
    stop = tokenizer.convert_tokens_to_ids("<|end|>")
    head = counter.model.lm_head.weight
    with torch.no_grad():
        head[[stop, tokenizer.convert_tokens_to_ids("d")]] = head[[tokenizer.convert_tokens_to_ids("d"), stop]]
    counts = calls_of([counter.model.lm_head])
    assert counter.generate(after(counter, "ab"), max_new_tokens=20) == ["c"]
    assert counts == [2]


def test_generation_stops_at_a_newline(counter):
    newline = counter.tokenizer("\n", add_special_tokens=False).input_ids[0]
    assert newline in counter.stop_ids
    d, head = counter.tokenizer.convert_tokens_to_ids("d"), counter.model.lm_head.weight
    with torch.no_grad():
        head[[newline, d]] = head[[d, newline]]
    counts = calls_of([counter.model.lm_head])
    assert counter.generate(after(counter, "ab"), max_new_tokens=20) == ["c"]
    assert counts == [2]


def test_sampling_follows_the_temperature(llama):
    prompt = inputs(llama, [5])
    torch.manual_seed(0)
    sampled = {llama.generate(prompt, max_new_tokens=8, temperature=2.0)[0] for _ in range(4)}
    assert len(sampled) > 1
    greedy = llama.generate(prompt, max_new_tokens=8)
    assert llama.generate(prompt, max_new_tokens=8, temperature=1e-4) == greedy
    assert llama.generate(prompt, max_new_tokens=8, temperature=2.0, top_p=1e-6) == greedy


def test_embedding_scale(llm):
    read = llm.embed(torch.arange(llm.model.config.vocab_size))
    assert llm.embedding_scale == pytest.approx(32**0.5 if "gemma" in llm.name else 1.0)
    assert llm.embedding_rms == pytest.approx(read.square().mean().sqrt().item())
    torch.testing.assert_close(llm.embedding_mean, read.mean(0))


def test_an_llm_without_a_chat_template_is_refused(tmp_path):
    tiny_llm(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    for file in tmp_path.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.llm=.* has no chat template; use an instruction-tuned model"):
        load_llm(str(tmp_path))
