"""The Open ASR Leaderboard's scorer: ours counts as kaldialign does over a whole corpus, and its tables are loaded.

The tables belong to the leaderboard. Where the variable OSSICLE_OPEN_ASR names a clone of its repository, the score is
compared with that of its own code.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.errors import ConfigError, DataError
from ossicle.evaluate.open_asr import OpenASR
from ossicle.evaluate.score import ScoreOptions, check_metrics, score

CLONE = os.environ.get("OSSICLE_OPEN_ASR")
TABLES = 'spellings = {"colour": "color", "ok": "okay"}\nnames = {"jon": "john"}\n'
NORMALIZER = """
import re
from .tables import names, spellings

class EnglishTextNormalizer:
    def __call__(self, text):
        words = re.sub(r"[^a-z0-9 ]", " ", re.sub(r"\\b(uh|um)\\b", "", text.lower())).split()
        return " ".join(names.get(w, spellings.get(w, w)) for w in words) + " "
"""
PARTS = (
    *("Jon", "Stephen", "Ann", "the colour", "two hundred and five", "white paper", "whitepaper", "e-mail", "wi fi"),
    *("don't", "it's", "uh", "Um,", "twenty five dollars", "organised", "A.B.C.", "Mr. Smith", "ok", "all right"),
    *("the BBC", "3.5 percent", "1,000", "(laughs)", "dog", "takes", "a", "red", "bird", "café", "9 a.m.", "et cetera"),
)


def corpus(count: int) -> tuple[list[str], list[str]]:
    """Return references, and hypotheses with words left out, added, replaced, joined and split."""
    chance = random.Random(0)
    references, hypotheses = [], []
    for _ in range(count):
        said = [chance.choice(PARTS) for _ in range(chance.randint(1, 12))]
        heard = []
        for part in said:
            match chance.randrange(12):
                case 0:
                    continue
                case 1:
                    heard += [part, chance.choice(PARTS)]
                case 2:
                    heard.append(chance.choice(PARTS))
                case 3:
                    heard.append(part.replace(" ", "").lower())
                case 4:
                    heard.append(f"{part[: len(part) // 2]} {part[len(part) // 2 :]}")
                case _:
                    heard.append(part)
        references.append(" ".join(["dog", *said]))  # never empty after normalisation
        hypotheses.append(" ".join(heard))
    return references, hypotheses


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small normaliser in the layout of the leaderboard's repository, whose package cannot be imported as a whole."""
    folder = tmp_path / "clone"
    (folder / "normalizer").mkdir(parents=True)
    (folder / "normalizer" / "__init__.py").write_text("import a_library_that_is_not_installed")
    (folder / "normalizer" / "normalizer.py").write_text(NORMALIZER)
    (folder / "normalizer" / "tables.py").write_text(TABLES)
    return folder


def test_compounds_names_and_spellings_are_no_errors(clone):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    scorer = OpenASR.load(clone)
    found = scorer.wer(["Uh, the color of John's whitepaper, OK?"], ["the colour of Jon's white paper okay"], "en")
    assert found.value == 0
    assert "norm:open-asr|code:" in found.signature
    assert "merge_compounds|kaldialign:" in found.signature
    assert scorer.wer(["the red dog"], ["the dog sat"], "en").value == pytest.approx(100 * 2 / 3)
    assert scorer.wer(["a b"], [["a b c", "a b"]], "en-GB").value == 0
    assert scorer.cer(["the colour"], ["the color"], "en").value == 0


def test_the_signature_changes_with_the_tables(clone, tmp_path):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    other = shutil.copytree(clone, tmp_path / "other")
    assert OpenASR.load(other).normaliser.signature == OpenASR.load(clone).normaliser.signature
    newer = shutil.copytree(clone, tmp_path / "newer")
    (newer / "normalizer" / "tables.py").write_text(TABLES + 'names["ann"] = "anne"')
    assert OpenASR.load(newer).normaliser.signature != OpenASR.load(clone).normaliser.signature


def test_segments_that_the_leaderboard_leaves_out_do_not_count(clone):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    wer = OpenASR.load(clone).wer
    kept = wer(["the dog", "x"], ["the cat", "y"], "en")
    more = wer(["the dog", "z", "x", "noise"], ["the cat", "Um", "y", "Ignore time segment in scoring."], "en")
    assert more.value == kept.value == pytest.approx(100 * 2 / 3)


def test_a_thousand_lines_have_the_errors_that_kaldialign_counts_over_the_corpus(clone):
    kaldialign = pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    references, hypotheses = corpus(1000)
    scorer = OpenASR.load(clone)
    words = [[tuple(scorer.normaliser.apply(text).split()) for text in texts] for texts in (references, hypotheses)]
    expected = kaldialign.batch_error_rate(*words, merge_compounds=True)
    found = scorer.wer(hypotheses, references, "en")
    assert found.value == pytest.approx(100 * expected["err_rate"], abs=1e-9)
    assert found.value != pytest.approx(100 * kaldialign.batch_error_rate(*words)["err_rate"])


@pytest.mark.skipif(CLONE is None, reason="set OSSICLE_OPEN_ASR to a clone of huggingface/open_asr_leaderboard")
def test_a_thousand_lines_have_the_score_of_the_leaderboards_own_code(tmp_path):
    """In another process, because its package is called ``normalizer``."""
    references, hypotheses = corpus(1000)
    (tmp_path / "lines.json").write_text(json.dumps([references, hypotheses]))
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from kaldialign import batch_error_rate
from normalizer.normalizer import EnglishTextNormalizer
normalize = EnglishTextNormalizer()
texts = [[tuple(normalize(text).split()) for text in part] for part in json.load(open(sys.argv[2]))]
print(batch_error_rate(*texts, merge_compounds=True)["err_rate"])
"""
    command = [sys.executable, "-c", code, str(CLONE), str(tmp_path / "lines.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = OpenASR.load(Path(CLONE)).wer(hypotheses, references, "en")
    assert found.value == pytest.approx(100 * float(done.stdout), abs=1e-9)
    assert round(found.value, 2) == round(100 * float(done.stdout), 2)  # as the leaderboard prints it


def write(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_only_english_is_scored(clone, tmp_path):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    lines = [
        {"id": "1", "language": "en", "hypothesis": "the whitepaper", "references": ["the white paper"]},
        {"id": "2", "language": "de", "hypothesis": "ja", "references": ["nein"]},
        {"id": "3", "hypothesis": "ja", "references": ["nein"]},
        {"id": "4", "task": "qa", "hypothesis": "red", "references": ["red"]},
    ]
    path = write(tmp_path / "h.jsonl", *lines)
    rows = {(row.task, row.language): row for row in score(path, ScoreOptions(normalise="open-asr", leaderboard=clone))}
    assert rows["asr", "en"].scores == {"wer": 0, "cer": pytest.approx(100 / 15)}
    assert rows["asr", "de"].scores == rows["asr", None].scores == {}
    assert "is for English, and the language of these lines is de" in rows["asr", "de"].errors["wer"]
    assert "not given: give the lines their language" in rows["asr", None].errors["wer"]
    assert rows["qa", None].scores["em"] == 100


def test_what_is_missing_is_named_with_the_command_that_gets_it(clone, tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"run git clone https://github\.com/huggingface/open_asr_leaderboard and give"
    ):
        check_metrics([], ScoreOptions(normalise="open-asr"))
    monkeypatch.setitem(sys.modules, "kaldialign", None)
    with pytest.raises(ImportError, match=r"needs kaldialign: run pip install 'ossicle\[score\]'"):
        OpenASR.load(clone)


def test_a_folder_that_is_no_clone_is_named(clone, tmp_path):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    with pytest.raises(DataError, match=r"has no normalizer/normalizer\.py, so it is no clone"):
        OpenASR.load(tmp_path)
    (clone / "normalizer" / "tables.py").unlink()
    with pytest.raises(DataError, match=r"normalizer: cannot be loaded \(ModuleNotFoundError"):
        OpenASR.load(clone)


def test_the_command(clone, tmp_path):
    pytest.importorskip("kaldialign", reason="needs pip install 'ossicle[score]'")
    lines = [{"id": "1", "language": "en", "hypothesis": "the whitepaper", "references": ["the white paper"]}]
    path = write(tmp_path / "h.jsonl", *lines)
    run = CliRunner().invoke
    done = run(app, ["score", str(path), "--normalise", "open-asr", "--leaderboard", str(clone)])
    assert done.exit_code == 0, done.output
    assert "wer: level:corpus|norm:open-asr" in done.output
    refused = run(app, ["score", str(path), "--leaderboard", str(clone)])
    assert refused.exit_code == 2
    assert "--leaderboard has an effect only with --normalise open-asr" in " ".join(refused.output.split())


def test_evaluate_asks_for_the_clone_before_it_loads_the_model(task_manifest, tmp_path):
    command = ["evaluate", str(tmp_path / "no-model"), str(task_manifest), "--normalise", "open-asr"]
    found = CliRunner().invoke(app, command).exception
    assert isinstance(found, ConfigError)
    assert "git clone" in str(found)
