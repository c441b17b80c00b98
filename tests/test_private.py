"""Private interfaces of other libraries and the public ways that replace them agree."""

import subprocess
import sys

import pytest
import torch
import transformers.utils
from sacrebleu.metrics import BLEU, CHRF

from ossicle import private, public
from ossicle.errors import ConfigError
from ossicle.evaluate.metrics import bleu, chrf
from ossicle.models.llm import load_llm
from ossicle.precision import new_accelerator


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_instructions_of_this_cpu_are_found_either_way(dtype):
    assert private.onednn_multiplies(dtype) == public.cpu_multiplies(dtype)


def test_without_the_private_question_the_public_one_is_asked(monkeypatch):
    class Nothing:
        pass

    expected = private.onednn_multiplies(torch.bfloat16)
    monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    assert private.onednn_multiplies(torch.bfloat16) == expected
    assert private.onednn_product(torch.randn(2, 3), torch.randn(4, 3)) is None


def test_the_product_by_onednn_is_the_product():
    x, y = torch.randn(5, 32), torch.randn(7, 32)
    product = private.onednn_product(x, y)
    if product is None:
        pytest.skip("PyTorch has no oneDNN here")
    torch.testing.assert_close(product, x @ y.T, rtol=1e-5, atol=1e-5)


def test_a_copy_by_public_means_shares_the_weights_and_nothing_else(folders):
    base = load_llm(str(folders["llama"])).model.base_model
    ids = torch.arange(12)[None]
    with torch.no_grad():
        whole = base(ids).last_hidden_state
    copies = []
    for copied in (private.shallow_copy(base), public.sharing_copy(base)):
        assert {id(p) for p in copied.parameters()} == {id(p) for p in base.parameters()}
        copied.layers, copied.norm = base.layers[:1], torch.nn.Identity()
        copied.config.num_hidden_layers = 1
        with torch.no_grad():
            copies.append(copied(ids).last_hidden_state)
    assert torch.equal(*copies)
    assert base.config.num_hidden_layers == len(base.layers) == 3
    with torch.no_grad():
        assert torch.equal(base(ids).last_hidden_state, whole)


@pytest.mark.parametrize("file", ["config.json", "missing.json"])
def test_a_file_of_a_model_is_found_either_way(folders, file, monkeypatch):
    name = str(folders["hubert"])
    expected = public.cached_model_file(name, file)
    assert (expected is None) == (file == "missing.json")
    assert public.hub_file(name, file) == expected

    def without_the_argument(name, file):
        raise AssertionError

    monkeypatch.setattr(transformers.utils, "cached_file", without_the_argument)
    assert public.cached_model_file(name, file) == expected


def test_a_file_of_a_hub_id_is_found_either_way_without_a_network(folders, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path), raising=False)
    assert public.hub_file("some/model", "config.json") == snapshot / "config.json"
    assert public.hub_file("some/model", "missing.json") is None


def test_an_attention_that_is_not_known_is_not_packed():
    assert private.takes_registered_attention(torch.nn.Linear(2, 2)) is False


def test_another_precision_is_refused_where_accelerate_cannot_forget_the_first(monkeypatch):
    monkeypatch.setattr("ossicle.precision.multiplies", lambda dtype, device: True)
    monkeypatch.setattr("ossicle.private.getattr", lambda *_: None, raising=False)
    assert new_accelerator("fp32", cpu=True).mixed_precision == "no"
    private.reset_accelerator_state()
    with pytest.raises(ConfigError, match=r"train\.precision=bf16"):
        new_accelerator("bf16", cpu=True)


SAID = [
    "Anna sah ein rotes Auto im Park.",
    "",
    "ja",
    "Wir gehen morgen alle zusammen ins Kino.",
    "a b",
    "这是 一个测试",
]
REFERENCES = [
    ["Anna sah das rote Auto im Park."],
    ["Er kam nicht.", "Er kam."],
    ["ja", "jawohl"],
    ["Ins Kino gehen wir.", "Wir gehen morgen alle ins Kino.", "Wir gehen morgen alle ins Kino."],
    ["", "c"],
    ["这是一次测试"],
]


@pytest.mark.parametrize("metric", [BLEU(), BLEU(tokenize="zh"), BLEU(tokenize="char"), CHRF()])
def test_translations_are_counted_alike_without_the_private_statistics_of_sacrebleu(metric):
    class Public:
        """The public part of a metric."""

        def __init__(self) -> None:
            self.corpus_score = metric.corpus_score
            if isinstance(metric, CHRF):
                self.char_order = metric.char_order

    expected = public.translation_counts(metric, SAID, REFERENCES)
    assert public.translation_counts(Public(), SAID, REFERENCES) == expected
    assert sum(map(sum, expected)) > 100
    assert len(expected[0]) == (18 if isinstance(metric, CHRF) else 10)


def test_translations_are_scored_alike_without_the_private_statistics_of_sacrebleu(monkeypatch):
    expected = bleu(SAID, REFERENCES).value, chrf(SAID, REFERENCES).value
    monkeypatch.setattr("ossicle.public.getattr", lambda *_: None, raising=False)
    assert (bleu(SAID, REFERENCES).value, chrf(SAID, REFERENCES).value) == expected
    assert min(expected) > 10


def test_scoring_needs_no_torch():
    program = "import sys; import ossicle.evaluate.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"
