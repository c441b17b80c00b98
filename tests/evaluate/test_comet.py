"""The protocol between Ossicle and a COMET scorer, with a stub for the scorer."""

import json
import sys

import pytest

from ossicle.errors import CometError
from ossicle.evaluate import comet as module
from ossicle.evaluate.comet import CometOptions, comet
from ossicle.evaluate.hypotheses import Hypothesis

LINES = [
    Hypothesis(id="1", task="st", text="the car", hypothesis="der Wagen", references=("das Auto", "der Wagen")),
    Hypothesis(id="2", task="st", text="a dög", hypothesis="", references=("ein Hund",)),
]
STUB = """
import json, pathlib, sys
header, *lines = map(json.loads, pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps([header, *lines]))
answer = [{"model": header["model"], "version": "stub"}] + [{"score": len(line["mt"]) / 10} for line in lines]
pathlib.Path(sys.argv[2]).write_text("".join(json.dumps(entry) + "\\n" for entry in answer))
"""


@pytest.fixture
def scorer(tmp_path):
    """``scorer(program)``: write a scorer and return the options that call it."""

    def make(program):
        path = tmp_path / "a scorer.py"
        path.write_text(program)
        return CometOptions(f"{sys.executable} '{path}'")

    return make


def test_utterances_go_out_and_scores_come_back(scorer, tmp_path):
    score = comet(LINES, scorer(STUB))
    assert json.loads((tmp_path / "seen.json").read_text()) == [
        {"model": "Unbabel/wmt22-comet-da"},
        {"src": "the car", "mt": "der Wagen", "ref": "das Auto"},
        {"src": "a dög", "mt": "", "ref": "ein Hund"},
    ]
    assert score.value == pytest.approx(45)  # 0.9 and 0
    assert score.signature == "model:Unbabel/wmt22-comet-da|version:stub|refs:first"
    assert score.parts.counts[:, 0].tolist() == pytest.approx([90, 0])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import sys; sys.exit('no route to the hub')",
            "failed with status 1 and printed: no route to the hub. COMET",
        ),
        ("", "wrote no answer. COMET runs in a separate environment"),
        ("import sys; open(sys.argv[2], 'w').write('{}')", "line 1 is '{}': expected"),
        (STUB.replace("for line in lines]", "for line in lines[:1]]"), "scored 1 of 2 utterances"),
        (STUB.replace("len(line", "'x' or len(line").replace(" / 10", ""), "line 2 is .* expected"),
        (STUB.replace("len(line", "float('nan') * len(line"), "line 2 is .* not a finite number"),
    ],
)
def test_a_scorer_that_fails_is_quoted(scorer, program, message):
    with pytest.raises(CometError, match=message):
        comet(LINES, scorer(program))


def test_a_missing_scorer_says_what_comet_needs():
    with pytest.raises(CometError, match=r"No such file .*unbabel-comet==.*wmt22-comet-da.*--comet-command"):
        comet(LINES, CometOptions("/nowhere/scorer"))


def test_a_line_without_transcript_is_named():
    line = Hypothesis(id="1", task="st", hypothesis="x", references=("y",), source="h.jsonl:7")
    with pytest.raises(CometError, match=r'h\.jsonl:7: no "text"'):
        comet([line], CometOptions("/nowhere/scorer"))


def test_the_own_environment_is_made_once_and_only_whole(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(module, "_run", commands.append)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "ossicle" / "unbabel-comet-2.2.7"
    folder.mkdir(parents=True)  # left by an interrupted installation
    first = module._default_command()
    assert first == [str(folder / "bin" / "python"), str(module.WORKER)]
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]
    assert module._default_command() == first
    assert len(commands) == 2


def test_uvx_is_used_where_there_is_one(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    command = module._default_command()
    assert command[:3] == ["/bin/uvx", "--from", "unbabel-comet==2.2.7"]
    assert command[-2:] == ["python", str(module.WORKER)]


def test_the_worker_finds_the_package_and_not_the_files_beside_it(monkeypatch, tmp_path):
    """A stub of unbabel-comet returns the length of the translation."""
    (tmp_path / "comet.py").write_text(
        "class Model:\n"
        "    def predict(self, lines, **options):\n"
        "        self.scores = [float(len(line['mt'])) for line in lines]\n"
        "        return self\n"
        "download_model = str\n"
        "load_from_checkpoint = lambda path: Model()\n"
    )
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: False)\n")
    metadata = tmp_path / "unbabel_comet-9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: unbabel-comet\nVersion: 9\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    score = comet(LINES, CometOptions(f"{sys.executable} '{module.WORKER}'"))
    assert score.parts.counts[:, 0].tolist() == [900, 0]
    assert "version:9" in score.signature


def test_a_command_with_an_open_quotation_is_named():
    with pytest.raises(CometError, match=r"--comet-command 'scorer: is no command .*; close the quotation"):
        comet(LINES, CometOptions("'scorer"))
