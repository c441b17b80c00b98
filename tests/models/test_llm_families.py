"""Test every LLM family with the special tokens and the template structure of its own."""

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from ossicle.batch import Padded, Sample, Utterance
from ossicle.data.collate import Collator
from ossicle.models.llm import LLM, load_llm
from ossicle.models.projectors import QFormerConfig
from ossicle.models.speech_llm import IGNORE, ModelConfig
from ossicle.prompts import ChatTemplate
from ossicle.testing import LLMS, chat_of, tiny_llm
from ossicle.testing.llms import WINDOW

LAYERS = 3
CAPPED = ("gemma2",)  # soft-capped attention
UNTIED = ("llama", "mistral", "olmo2")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    root = tmp_path_factory.mktemp("llms")
    return {family: tiny_llm(root / family, family, layers=LAYERS, own_chat=True) for family in LLMS}


@pytest.fixture(params=LLMS)
def family(request) -> str:
    return request.param


@pytest.fixture
def llm(own, family) -> LLM:
    return load_llm(str(own[family]))


def ids_of(lengths: list[int]) -> Padded:
    ids = torch.randint(0, 250, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    return Padded(ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def test_the_family_is_what_it_says(llm, family):
    model = llm.model
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is (family not in UNTIED)
    assert (llm.tokenizer.pad_token_id is None) is (family != "qwen2")
    assert llm.packs is (family not in CAPPED)
    if family in CAPPED:  # transformers' sdpa has no soft cap and would refuse it
        assert model.config._attn_implementation == "eager"


def test_states_of_text_are_those_of_its_token_ids(llm, family):
    """Compare with transformers, which looks up and scales embeddings of ids. Windows are shorter than the text."""
    ids = ids_of([3 * WINDOW, WINDOW - 2])
    with torch.no_grad():
        expected = llm.model(
            input_ids=ids.values, attention_mask=ids.mask.long(), output_hidden_states=True
        ).hidden_states
    for depth in range(1, LAYERS + 1):
        states = llm.read(ids, range(depth + 1)).states
        for layer in range(depth + 1):
            torch.testing.assert_close(states[layer][ids.mask], expected[layer][ids.mask], atol=1e-5, rtol=1e-4)


def test_a_window_hides_what_is_before_it(llm, family):
    """In the first layer of a family with windows, the last position does not attend to the first."""
    ids = ids_of([2 * WINDOW])
    other = ids.values.clone()
    other[0, 0] += 1
    first, second = (llm.read(Padded(values, ids.mask), [1]).states[1][0, -1] for values in (ids.values, other))
    config = llm.model.config.to_dict()
    windowed = config.get("layer_types", ["sliding_attention" if config.get("sliding_window") else ""])[0]
    assert torch.equal(first, second) is (windowed == "sliding_attention")
    assert (windowed == "sliding_attention") is (family in ("mistral", "gemma2", "gemma3", "phi3"))


def test_logits_are_capped_where_the_family_caps_them(llm, family):
    ids = ids_of([6])
    with torch.no_grad():
        expected = llm.model(input_ids=ids.values).logits
        logits = llm.logits(llm.read(ids, [LAYERS]).states[LAYERS])
        far = llm.logits(1e4 * torch.ones(1, llm.dim))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert bool(far.abs().max() <= 30) == (family == "gemma2")


def test_generation_from_vectors_is_that_from_ids(llm, family):
    ids = ids_of([2 * WINDOW])
    prompt = Padded(llm.embed(ids.values), ids.mask)
    with torch.no_grad():
        expected = llm.model.generate(
            input_ids=ids.values, max_new_tokens=6, do_sample=False, eos_token_id=llm.stop_ids, pad_token_id=0
        )[:, ids.values.shape[1] :]
    text = llm.tokenizer.batch_decode(expected, skip_special_tokens=True)[0]
    assert llm.generate(prompt, max_new_tokens=6) == [text.split("\n")[0].strip()]


def test_the_template_is_cut_where_the_speech_goes(llm, family):
    chat, template = chat_of(family), ChatTemplate.of(llm.tokenizer)
    assert template.before == chat.before
    assert template.between == " "
    assert template.header == chat.header
    assert template.end.startswith(chat.end)


def test_the_end_of_turn_is_a_label_and_ends_an_answer(llm, family):
    chat = chat_of(family)
    end, eos = llm.tokenizer.convert_tokens_to_ids([chat.end, chat.eos])
    assert {end, eos} <= llm.end_ids <= set(llm.stop_ids)
    assert len(llm.end_ids) == len({end, eos})


def test_exactly_the_answer_and_its_end_of_turn_are_labels(own, folders, family):
    chat = chat_of(family)
    sizes = QFormerConfig(width=16, heads=2, layers=1, ffn=16, queries=2, window_s=0.1)
    model = ModelConfig(encoder=str(folders["hubert"]), llm=str(own[family]), projector=sizes).build().eval()
    sample = Sample(id="u", audio=".", instruction="say it", answers=("fünf Vögel",))
    batch = Collator(model.prompter())([Utterance(sample, waveform=torch.randn(6000))])
    speech = model.speech(batch)
    embeds, labels = model.chat_inputs(batch.chat, speech)
    labelled = labels[0] != IGNORE
    assert model.llm.tokenizer.decode(labels[0][labelled]) == "fünf Vögel" + chat.end
    assert labelled.nonzero().flatten().tolist() == list(range(int(labels.shape[1] - labelled.sum()), labels.shape[1]))
    expected = [
        model._embed(Padded(torch.tensor([model.prompter().ids(text)]), torch.ones(1, 1, dtype=torch.bool))).values
        if isinstance(text, str)
        else text.values
        for text in (chat.before, speech, f" say it{chat.header}")
    ]
    torch.testing.assert_close(embeds.values[0][~labelled], torch.cat(expected, 1)[0])
    # A token that begins the sequence is there once: neither missing nor added by the tokenizer to the template's own.
    if chat.bos is not None:
        assert batch.chat.before.values[0].tolist().count(model.llm.tokenizer.bos_token_id) == 1


def test_speech_starts_at_the_scale_of_text(own, folders, family):
    sizes = QFormerConfig(width=64, heads=2, layers=1, ffn=16)
    model = ModelConfig(encoder=str(folders["hubert"]), llm=str(own[family]), projector=sizes).build().eval()
    batch = Collator(model.prompter())([Utterance(Sample(id="u", audio="."), waveform=torch.randn(96_000))])
    speech = model.llm.hidden_states(model.speech(batch), [0]).states[0]
    text = model.llm.read(ids_of([200]), [0]).states[0]
    assert speech.square().mean().sqrt().item() == pytest.approx(text.square().mean().sqrt().item(), rel=0.2)


def test_thinking_is_off_and_the_date_is_fixed(own):
    assert ChatTemplate.of(AutoTokenizer.from_pretrained(own["qwen3"])).header.endswith("<think>\n\n</think>\n\n")
    assert "26 Jul 2024" in ChatTemplate.of(AutoTokenizer.from_pretrained(own["llama"])).before


def test_gemma_has_no_system_turn(own):
    tokenizer = AutoTokenizer.from_pretrained(own["gemma2"])
    with pytest.raises(Exception, match="no system turn"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_of_a_model_that_sees_images_the_language_model_is_loaded(own, tmp_path):
    text = AutoConfig.from_pretrained(own["gemma3"])
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=1
    )
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(own["gemma3"]).save_pretrained(tmp_path)
    llm = load_llm(str(tmp_path))
    assert not [name for name, _ in llm.named_modules() if "vision" in name]
    ids = ids_of([12])
    with torch.no_grad():
        expected = whole(input_ids=ids.values).logits
    torch.testing.assert_close(llm.logits(llm.read(ids, [LAYERS]).states[LAYERS]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_weights_need_a_gpu(own, dtype):
    with pytest.raises(ValueError, match=f"model.llm_dtype={dtype} needs an NVIDIA GPU: set model.llm_dtype=bfloat16"):
        ModelConfig(llm=str(own["llama"]), llm_dtype=dtype).build()
