"""Tests of Common Voice and CoVoST 2."""

from pathlib import Path

import pytest
from miniatures import text, tone

HEAD = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment\n"


def row(number: int, sentence: str, gender: str = "") -> str:
    return f"speaker{number}\tcommon_voice_en_{number}.mp3\t{sentence}\t2\t0\t\t{gender}\t\ten\t\n"


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """A locale with its clips in validated.tsv and in the splits, and with the translations of CoVoST."""
    root = tmp_path / "cv" / "en"
    text(root / "train.tsv", HEAD + row(1, '"Yes, he said.', "female") + row(2, ""))
    text(root / "dev.tsv", HEAD + row(3, "A dog."))
    text(root / "validated.tsv", HEAD + row(1, '"Yes, he said.') + row(2, "Two.") + row(3, "A dog.") + row(4, "Four."))
    text(
        root / "covost_v2.en_de.tsv",
        "path\ttranslation\tsplit\n"
        'common_voice_en_1.mp3\t"Ja, sagte er.\ttrain\ncommon_voice_en_2.mp3\tZwei.\ttrain\n'
        "common_voice_en_3.mp3\tEin Hund.\tdev\n",
    )
    text(
        root / "covost_v2.en_tr.train.tsv",
        "path\tsentence\ttranslation\tclient_id\ncommon_voice_en_1.mp3\tx\tEvet.\tx\n",
    )
    for number in (1, 2, 3, 4):
        tone(root / f"clips/common_voice_en_{number}.mp3", 1.0, 48_000)
    return root


def test_common_voice(voices, prepared):
    lines, _ = prepared("common-voice", voices.parent)
    assert lines.keys() == {"en.train", "en.dev", "dropped"}  # validated.tsv repeats them
    line = lines["en.train"][0]
    assert line.pop("duration_s") == pytest.approx(1.0, abs=0.1)  # MP3 rounds up to whole frames
    assert line == {
        "id": "common_voice_en_1",
        "audio": str(voices / "clips/common_voice_en_1.mp3"),
        "text": '"Yes, he said.',
        "language": "en",
        "speaker": "speaker1",
        "task": "asr",
        "gender": "female",
    }
    assert lines["dropped"] == [{"id": "common_voice_en_2", "reason": "no transcript", "detail": ""}]


def test_common_voice_split_and_language(voices, prepared):
    assert prepared("common-voice", voices, splits=("validated",), language="en-GB")[0].keys() == {"en-GB.validated"}


def test_common_voice_broken(voices, refused):
    assert "has no locale 'de'; choose from en" in refused("common-voice", voices.parent, language="de")
    text(voices / "dev.tsv", HEAD.replace("sentence", "text") + row(3, "A dog."))
    assert "dev.tsv:1: has no column 'sentence'; its columns are client_id, path, text" in refused(
        "common-voice", voices, splits=("dev",)
    )
    text(voices / "dev.tsv", HEAD + row(3, "A\tdog."))
    assert "dev.tsv:2: has 11 cells, line 1 has 10" in refused("common-voice", voices, splits=("dev",))
    assert "contains no folder with clips; expected de/{train.tsv" in refused("common-voice", voices / "clips")


def test_covost(voices, prepared):
    lines, report = prepared("covost", voices)
    assert lines.keys() == {"en.train", "en.train.st-de", "en.train.st-tr", "en.dev", "en.dev.st-de"}
    assert [line["id"] for line in lines["en.train"]] == ["common_voice_en_1", "common_voice_en_2"]
    assert {
        key: lines["en.train.st-de"][0][key] for key in ("id", "task", "target_language", "answer", "instruction")
    } == {
        "id": "common_voice_en_1-de",
        "task": "st",
        "target_language": "de",
        "answer": '"Ja, sagte er.',
        "instruction": "Translate the speech to German.",
    }
    assert lines["en.train.st-tr"][0]["answer"] == "Evet."
    assert lines["en.train.st-tr"][0]["text"] == '"Yes, he said.'
    assert report.manifests["en.train"].lines == 2


def test_covost_choices(voices, prepared):
    lines, _ = prepared("covost", voices, targets=("de",), splits=("dev",), tasks=("st",))
    assert lines.keys() == {"en.dev.st-de"}


def test_covost_broken(voices, refused):
    assert "has no target 'fr'; choose from de, tr" in refused("covost", voices, targets=("fr",))
    assert "has no language 'de'; choose from en" in refused("covost", voices, language="de")
    text(voices / "covost_v2.en_de.tsv", "path\ttranslation\nx\ty\n")
    assert "covost_v2.en_de.tsv:1: has no column 'split'" in refused("covost", voices)
    (voices / "validated.tsv").unlink()
    assert "validated.tsv: there is no such file; expected a Common Voice folder" in refused("covost", voices)
    for path in voices.glob("covost*"):
        path.unlink()
    assert "has no file covost_v2.en_de.tsv" in refused("covost", voices)
    assert "has no folder clips" in refused("covost", voices.parent)
