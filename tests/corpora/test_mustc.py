from pathlib import Path

import pytest
from miniatures import text, tone

INDEX = (
    "- {duration: 1.500000, offset: 0.250000, rW: 3, uW: 0, speaker_id: spk.1, wav: ted_1.wav}\n"
    "- {duration: 1.000000, offset: 2.000000, rW: 2, uW: 0, speaker_id: spk.1, wav: ted_1.wav}\n"
    "- {duration: 2.000000, offset: 0.000000, rW: 2, uW: 0, speaker_id: spk.7, wav: ted_7.wav}\n"
)


@pytest.fixture
def mustc(tmp_path: Path) -> Path:
    """Two language pairs with a training split, one of them with tst-COMMON."""
    root = tmp_path / "MUST-C"
    words = {
        "de": "Danke sehr.\n(Gelächter)  Ja.\nUnd nun?\n",
        "fr": "Merci beaucoup.\nOui.\n\n",
    }
    for target, translation in words.items():
        folder = root / f"en-{target}" / "data" / "train"
        text(folder / "txt" / "train.yaml", INDEX)
        text(folder / "txt" / "train.en", "Thank you very much.\n(Laughter)  Yes.\nAnd now?\n")
        text(folder / f"txt/train.{target}", translation)
        tone(folder / "wav" / "ted_1.wav", 3.0)
        tone(folder / "wav" / "ted_7.wav", 2.0)
    folder = root / "en-de" / "data" / "tst-COMMON"
    text(folder / "txt" / "tst-COMMON.yaml", INDEX.splitlines()[2] + "\n")
    text(folder / "txt" / "tst-COMMON.en", "The end.\n")
    text(folder / "txt" / "tst-COMMON.de", "Das Ende.\n")
    tone(folder / "wav" / "ted_7.wav", 2.0)
    return root


def test_segments_become_transcripts_once_and_translations_for_each_language(mustc, prepared):
    lines, report = prepared("mustc", mustc)
    assert lines.keys() == {"train", "train.st-de", "train.st-fr", "tst-COMMON", "tst-COMMON.st-de", "dropped"}
    wav = str(mustc / "en-de/data/train/wav/ted_1.wav")
    assert lines["train"][1] == {
        "id": "ted_1-0002",
        "audio": wav,
        "text": "(Laughter) Yes.",
        "language": "en",
        "speaker": "spk.1",
        "task": "asr",
        "duration_s": 1.0,
        "start_s": 2.0,
        "end_s": 3.0,
    }
    assert lines["train.st-de"][0] == {
        "id": "ted_1-0001-de",
        "audio": wav,
        "text": "Thank you very much.",
        "language": "en",
        "speaker": "spk.1",
        "task": "st",
        "instruction": "Translate the speech to German.",
        "target_language": "de",
        "duration_s": 1.5,
        "start_s": 0.25,
        "end_s": 1.75,
        "answer": "Danke sehr.",
    }
    assert [line["id"] for line in lines["train.st-fr"]] == ["ted_1-0001-fr", "ted_1-0002-fr"]
    assert lines["train.st-fr"][0]["audio"] == str(mustc / "en-fr/data/train/wav/ted_1.wav")
    assert lines["dropped"] == [{"id": "ted_7-0001", "reason": "no translation", "detail": ""}]
    assert (report.manifests["train"].lines, report.manifests["train"].speech_s) == (3, 4.5)


def test_options_choose_pair_split_and_task(mustc, prepared):
    lines, _ = prepared("mustc", mustc, targets=("fr",), splits=("train",), tasks=("asr",), lower=True)
    assert lines.keys() == {"train"}
    assert [line["text"] for line in lines["train"]] == ["thank you very much.", "(laughter) yes.", "and now?"]
    assert lines["train"][0]["audio"].startswith(str(mustc / "en-fr"))


def test_the_folder_of_one_pair_is_enough(mustc, prepared):
    lines, _ = prepared("mustc", mustc / "en-fr")
    assert lines.keys() == {"train", "train.st-fr"}


def test_a_segment_after_the_end_of_its_talk_is_left_out(mustc, prepared):
    tone(mustc / "en-de/data/train/wav/ted_1.wav", 2.5)
    lines, _ = prepared("mustc", mustc / "en-de", splits=("train",))
    assert [line["id"] for line in lines["train"]] == ["ted_1-0001", "ted_7-0001"]
    assert lines["dropped"][0]["reason"] == "segment outside its recording"
    assert lines["dropped"][0]["detail"].endswith("ted_1.wav: 2.0-3.0 s of 2.50 s")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.de", None, "train.de: there is no such file; expected en-de/data/train/"),
        ("train.de", "Danke.\n", "train.yaml:2: train.en, train.de and this file differ in length"),
        ("train.yaml", "wav: a\n" * 3, "train.yaml:1: is not a segment; expected - {duration: .."),
        ("train.yaml", "- {wav: a, offset: 1, speaker_id: b}\n" * 3, "train.yaml:1: has no 'duration'"),
        (
            "train.yaml",
            INDEX.replace("offset: ", "offset: soon"),
            "train.yaml:1: could not convert string to float: 'soon0.250000'",
        ),
        ("train.yaml", "- {\n" * 3, "train.yaml:1: is not YAML"),
    ],
)
def test_a_broken_file_is_named_with_its_line(mustc, refused, file, content, message):
    path = mustc / "en-de/data/train/txt" / file
    path.unlink() if content is None else text(path, content)
    assert message in refused("mustc", mustc / "en-de", splits=("train",))


def test_text_in_another_encoding_is_left_out(mustc, prepared):
    (mustc / "en-de/data/train/txt/train.en").write_bytes("sch\u00f6n\nYes.\nAnd?\n".encode("latin-1"))
    lines, _ = prepared("mustc", mustc / "en-de", splits=("train",))
    assert [line["id"] for line in lines["train"]] == ["ted_1-0002", "ted_7-0001"]
    assert [line["id"] for line in lines["dropped"]] == ["ted_1-0001", "ted_1-0001-de"]
    assert lines["dropped"][0]["reason"] == "not UTF-8"
    assert lines["dropped"][0]["detail"].endswith('train.yaml:1: "text" is not UTF-8; save names and texts as UTF-8')


def test_an_invalid_row_does_not_stop_the_others(mustc, prepared):
    rows = [INDEX.splitlines()[0], "- {wav: [", INDEX.splitlines()[2].replace("spk.7", "7")]
    text(mustc / "en-de/data/train/txt/train.yaml", "\n".join(rows) + "\n")
    lines, _ = prepared("mustc", mustc / "en-de", splits=("train",))
    assert [(line["id"], line["speaker"]) for line in lines["train"]] == [("ted_1-0001", "spk.1"), ("ted_7-0001", "7")]
    assert [(line["id"], line["reason"]) for line in lines["dropped"]] == [("train.yaml:2", "invalid row")]


def test_another_folder_is_refused_with_what_was_expected(tmp_path, refused):
    tone(tmp_path / "other" / "a.wav")
    said = refused("mustc", tmp_path / "other")
    assert "other: has no en-de/data, en-es/data, ...; expected en-de/data/train/{txt/train.yaml" in said
    assert "there is no such file or folder; expected en-de/data/train/" in refused("mustc", tmp_path / "gone")


def test_a_choice_that_is_not_there_is_named(mustc, refused):
    assert "has no language pair en to 'ru'; choose from de, fr" in refused("mustc", mustc, targets=("ru",))
    assert "has no split 'dev'; choose from train, tst-COMMON" in refused("mustc", mustc, splits=("dev",))
    said = refused("mustc", mustc, subsets=("XS",))
    assert said == "the corpus mustc has no option --subset; its own options: --split, --target, --task"
