import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ossicle import precision
from ossicle.models.lora import adapters, describe
from ossicle.models.saving import ADAPTERS_FILE, WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.cache import FrameCache, TextCache
from ossicle.train.loop import train

TOP = "encoder.model.encoder.layers.1.*"
LORA = {"modules": ["llm.*.q_proj", "llm.*.v_proj", "encoder.*.k_proj"], "rank": 2, "alpha": 4.0}
STEPS = {"steps": 3}


@pytest.fixture
def built(config):
    """Return a function that builds a model with the given settings of ``trainable`` and ``lora``."""
    return lambda **model: config(model=model).model.build()


def frozen_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_by_default_the_projector_alone(built):
    model = built()
    assert adapters(model) == {}
    assert describe(model) == []
    assert not model.encoder.trains and not model.llm.trains


def test_patterns_name_parameters(built):
    model = built(trainable=[TOP, "llm.model.lm_head.weight"])
    names = set(adapters(model))
    assert "encoder.model.encoder.layers.1.attention.q_proj.weight" in names
    assert "llm.model.lm_head.weight" in names
    assert not [name for name in names if "layers.0" in name]
    assert model.encoder.trains and model.llm.trains


def test_a_pattern_that_names_nothing_is_refused_with_examples(built):
    with pytest.raises(
        ValueError, match=r"model\.trainable: 'encoder\.layers\.9\.\*' matches nothing; use names such as enc"
    ):
        built(trainable=["encoder.layers.9.*"])
    with pytest.raises(
        ValueError, match=r"model\.lora\.modules: 'llm\.\*\.query' matches nothing; .*llm\.model\.lm_head"
    ):
        built(lora={"modules": ["llm.*.query"]})


@pytest.mark.parametrize("possible", [True, False])  # a recipe is as good on every machine
def test_weights_in_half_precision_do_not_train_and_adapters_on_them_do(built, monkeypatch, possible):
    monkeypatch.setattr(precision, "multiplies", lambda dtype, _: possible or dtype == torch.float32)
    with pytest.raises(
        ValueError, match=r"model\.encoder_dtype=bfloat16 is too coarse to train: set model\.encoder_dtype=float32"
    ):
        built(trainable=[TOP], encoder_dtype="bfloat16")
    model = built(lora=LORA, llm_dtype="bfloat16")
    assert {parameter.dtype for parameter in adapters(model).values()} == {torch.float32}


def test_lora_starts_as_nothing_and_its_list_has_counts(built, collate, manifest):
    plain, model = built().eval(), built(lora=LORA).eval()
    batch = collate(plain, manifest)
    text = batch.text
    assert torch.equal(plain.llm.read(text, [3]).states[3], model.llm.read(text, [3]).states[3])
    assert torch.equal(plain.encoder(batch.waveforms).values, model.encoder(batch.waveforms).values)
    assert plain.llm.fingerprint == model.llm.fingerprint  # of the base
    listed, layers = describe(model), "llm.model.model.layers.*.self_attn"
    # 32 wide, one of two key-value heads: q 32 -> 32, v 32 -> 16, three layers; the encoder's k 24 -> 24, two layers.
    assert f"{layers}.q_proj.lora_A.default.weight: 3 tensors, {3 * 2 * 32} parameters" in listed
    assert f"{layers}.v_proj.lora_B.default.weight: 3 tensors, {3 * 2 * 16} parameters" in listed
    assert sum(p.numel() for p in adapters(model).values()) == 3 * 2 * (64 + 48) + 2 * 2 * 48


def test_dropout_is_the_adapters_alone(built):
    model = built(lora={**LORA, "dropout": 0.5}, trainable=[TOP]).train()
    on = {name for part in (model.encoder, model.llm) for name, module in part.named_modules() if module.training}
    assert on and all("lora_dropout" in name for name in on)
    model.eval()
    assert not any(module.training for module in model.modules())


def test_wavlm_would_not_hear_adapters_of_its_attention(folders, built):
    with pytest.raises(ValueError, match=r"WavLM reads the weights of .*q_proj without calling it"):
        built(encoder=str(folders["wavlm"]), lora={"modules": ["encoder.*.q_proj"]})
    built(encoder=str(folders["wavlm"]), lora={"modules": ["encoder.*.intermediate_dense"]})


@pytest.mark.parametrize(
    "model",
    [
        {"trainable": [TOP]},
        {"lora": LORA},
        {"lora": LORA, "trainable": [TOP, "llm.model.model.norm.weight"]},
        {"encoder_layer": "mix"},
        {"encoder_layer": "mix", "lora": {**LORA, "dropout": 0.1}},
    ],
    ids=["top", "lora", "both", "mix", "mix-lora"],
)
def test_what_trains_is_all_that_changes_is_saved_and_comes_back(config, collate, manifest, model, capsys):
    settings = config(model=model, train=STEPS)
    torch.manual_seed(settings.train.seed)
    before = settings.model.build()
    folder = train(settings)
    after, again = (SpeechLLM.from_pretrained(folder) for _ in range(2))

    names = set(adapters(before))
    with safe_open(folder / ADAPTERS_FILE, "pt") as file:
        assert set(file.keys()) == names == set(adapters(after))
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not name.startswith("projector.") and not torch.equal(old[name], new[name])}
    # A key's bias cancels in the softmax: it need not move.
    assert {name for name in names if not name.endswith("k_proj.bias")} - changed == set()
    assert changed <= names
    batch = collate(after, manifest)
    assert torch.equal(after.speech(batch).values, again.speech(batch).values)
    assert torch.equal(after.llm.read(batch.text, [3]).states[3], again.llm.read(batch.text, [3]).states[3])
    said = capsys.readouterr().err
    assert "trains: projector (qformer): " in said and " tokens/s" in said
    assert all(f"trains: {line}" in said for line in describe(after))


def test_a_run_of_adapters_resumes_as_if_it_had_never_stopped(config):
    model = {"lora": LORA, "trainable": [TOP], "encoder_layer": "mix"}
    whole = train(config(name="whole", model=model, train={"steps": 4, "save_every": 2}))
    stopped = config(name="stopped", model=model, train={"steps": 4, "save_every": 2})
    train(stopped)
    for path in (stopped.folder / "checkpoints").glob("step-*4"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    train(stopped, resume=True)
    for file in (ADAPTERS_FILE, WEIGHTS_FILE):
        first, second = load_file(whole / file), load_file(stopped.folder / file)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_text_logits_are_unchanged_to_the_bit_where_the_llm_is_frozen(config, collate, manifest):
    def logits(model: SpeechLLM) -> torch.Tensor:
        return model.llm.logits(model.llm.read(collate(model, manifest).text, [3]).states[3])

    base = logits(config().model.build())
    assert torch.equal(logits(SpeechLLM.from_pretrained(train(config(name="projector", train=STEPS)))), base)
    encoder = {"trainable": [TOP], "encoder_layer": "mix", "lora": {"modules": ["encoder.*.v_proj"], "rank": 2}}
    assert torch.equal(logits(SpeechLLM.from_pretrained(train(config(name="e", model=encoder, train=STEPS)))), base)
    llm = {"lora": {"modules": ["llm.*.v_proj"], "rank": 2}}
    assert not torch.equal(logits(SpeechLLM.from_pretrained(train(config(name="l", model=llm, train=STEPS)))), base)


def test_stage_2_may_train_more_than_stage_1_but_not_less(config):
    plain = train(config(name="plain", train=STEPS))
    both = {"lora": LORA, "encoder_layer": "last"}
    more = train(config(name="more", model=both, train={**STEPS, "init_from": str(plain)}))
    with pytest.raises(
        ValueError, match=r"more contains 16 trained tensors that do not train here, such as .*: set model\.e"
    ):
        train(config(name="less", train={**STEPS, "init_from": str(more)}))
    with pytest.raises(ValueError, match=r"was trained with model\.encoder_layer=last, not mix: set it to last"):
        train(config(name="mix", model={"encoder_layer": "mix"}, train={**STEPS, "init_from": str(plain)}))


def test_caches_are_refused_for_what_trains(built, config, tmp_path):
    with pytest.raises(ValueError, match=r"data\.cache_frames keeps the output of a frozen encoder.*model\.lora"):
        FrameCache(tmp_path, built(lora={"modules": ["encoder.*.v_proj"]}).encoder)
    with pytest.raises(ValueError, match=r"data\.cache_text keeps the states of a frozen LLM.*model\.lora"):
        TextCache(tmp_path, built(lora={"modules": ["llm.*.v_proj"]}).llm)
    with pytest.raises(ValueError, match=r"set data\.cache_frames=false"):
        train(config(model={"trainable": [TOP]}, data={"cache_frames": True, "cache_dir": str(tmp_path)}))
    with pytest.raises(ValueError, match=r"set data\.cache_text=false"):
        train(config(name="t", model={"lora": LORA}, data={"cache_text": True, "cache_dir": str(tmp_path)}))
