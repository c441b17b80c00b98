"""Tests of LibriSpeech, Multilingual LibriSpeech and folders of recordings with text files."""

from pathlib import Path

import pytest
from miniatures import text, tone


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    text(
        root / "SPEAKERS.TXT",
        ";ID  |SEX| SUBSET\n19  | F | train-clean-100 | 25.19 | Kara\n26 | M | dev-clean | 1 | X\n",
    )
    chapter = root / "train-clean-100/19/198"
    text(chapter / "19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n19-198-0002 \n")
    tone(chapter / "19-198-0000.flac", 1.0)
    tone(chapter / "19-198-0001.flac", 2.0)
    text(root / "dev-clean/26/495/26-495.trans.txt", "26-495-0000 HE SAID\n")
    tone(root / "dev-clean/26/495/26-495-0000.flac", 0.5)
    return root


def test_librispeech(librispeech, prepared):
    lines, _ = prepared("librispeech", librispeech.parent)
    assert lines.keys() == {"train-clean-100", "dev-clean", "dropped"}
    assert lines["train-clean-100"][0] == {
        "id": "19-198-0000",
        "audio": str(librispeech / "train-clean-100/19/198/19-198-0000.flac"),
        "text": "NORTHANGER ABBEY",
        "language": "en",
        "speaker": "19",
        "task": "asr",
        "duration_s": 1.0,
        "gender": "female",
    }
    assert [line["id"] for line in lines["train-clean-100"]] == ["19-198-0000", "19-198-0001"]
    assert lines["dropped"] == [{"id": "19-198-0002", "reason": "no transcript", "detail": ""}]


def test_mini_librispeech(librispeech, prepared):
    (librispeech / "train-clean-100").rename(librispeech / "train-clean-5")
    (librispeech / "dev-clean").rename(librispeech / "dev-clean-2")
    lines, _ = prepared("librispeech", librispeech)
    assert [line["id"] for line in lines["train-clean-5"]] == ["19-198-0000", "19-198-0001"]
    assert [line["id"] for line in lines["dev-clean-2"]] == ["26-495-0000"]


def test_librispeech_durations_can_be_limited(librispeech, prepared):
    lines, report = prepared("librispeech", librispeech, min_s=0.6, max_s=1.5)
    assert lines.keys() == {"train-clean-100", "dropped"}
    assert (report.dropped["too short"].count, report.dropped["too long"].count) == (1, 1)


def test_librispeech_broken(librispeech, refused, tmp_path):
    chapter = librispeech / "train-clean-100/19/198"
    text(chapter / "19-198.trans.txt", "20-198-0000 NO\n")
    said = refused("librispeech", librispeech, splits=("train-clean-100",))
    assert "19-198.trans.txt:1: begins with '20-198-0000'" in said
    (chapter / "19-198.trans.txt").unlink()
    assert "19-198.trans.txt: there is no such file; expected train-clean-100/19/198/" in refused(
        "librispeech", librispeech
    )
    assert "contains none of the folders train-clean-100, " in refused(
        "librispeech", tmp_path / "LibriSpeech/dev-clean"
    )


@pytest.fixture
def mls(tmp_path: Path) -> Path:
    root = tmp_path / "corpora"
    for folder, name, words in (("mls_german", "10_20_000000", "guten tag"), ("mls_polish_opus", "1_2_000003", "tak")):
        split = root / folder / "train"
        text(split / "transcripts.txt", f"{name}\t{words}\n")
        speaker, book, _ = name.split("_")
        tone(split / "audio" / speaker / book / f"{name}{'.opus' if 'opus' in folder else '.flac'}", 1.5)
    return root


def test_multilingual_librispeech(mls, prepared):
    lines, _ = prepared("mls", mls)
    assert lines.keys() == {"de.train", "pl.train"}
    assert lines["pl.train"] == [
        {
            "id": "1_2_000003",
            "audio": str(mls / "mls_polish_opus/train/audio/1/2/1_2_000003.opus"),
            "text": "tak",
            "language": "pl",
            "speaker": "1",
            "task": "asr",
            "duration_s": 1.5,
        }
    ]


def test_multilingual_librispeech_one_language(mls, prepared):
    assert prepared("mls", mls / "mls_german")[0].keys() == {"de.train"}


def test_multilingual_librispeech_broken(mls, refused):
    assert "has no language 'fr'; choose from de, pl" in refused("mls", mls, language="fr")
    text(mls / "mls_german/train/transcripts.txt", "10_20_000000 guten tag\n")
    assert "transcripts.txt:1: is invalid; expected SPEAKER_BOOK_NUMBER, a tab and the text" in refused(
        "mls", mls / "mls_german"
    )
    (mls / "mls_german/train/transcripts.txt").unlink()
    assert "transcripts.txt: there is no such file; expected mls_german/train" in refused("mls", mls / "mls_german")
    assert "has no folder mls_german" in refused("mls", mls / "mls_german/train")


def test_a_folder_of_text_files(tmp_path, prepared):
    root = tmp_path / "mine"
    tone(root / "b.wav", 1.0, 44_100)
    text(root / "b.txt", "\ufeffHello   there\n")
    tone(root / "a/2.mp3", 1.0)
    text(root / "a/2.txt", "deep")
    tone(root / "a/1.flac", 1.0)
    lines, _ = prepared("folder", root, language="en")
    assert lines["speech"] == [
        {"id": "a/2", "audio": str(root / "a/2.mp3"), "text": "deep", "language": "en", "task": "asr",
         "duration_s": pytest.approx(1.0, abs=0.1)},
        {"id": "b", "audio": str(root / "b.wav"), "text": "Hello there", "language": "en", "task": "asr",
         "duration_s": 1.0},
    ]  # fmt: skip
    assert lines["dropped"] == [{"id": "a/1", "reason": "no .txt file", "detail": str(root / "a/1.txt")}]


def test_a_folder_without_audio_or_with_invalid_texts_is_refused(tmp_path, refused):
    text(tmp_path / "mine/b.txt", "Hello")
    assert "mine: contains no audio files; expected a.wav and a.txt" in refused("folder", tmp_path / "mine")
    tone(tmp_path / "mine/b.wav")
    (tmp_path / "mine/b.txt").write_bytes(b"\xff\xfe")
    assert "b.txt: is not UTF-8 text" in refused("folder", tmp_path / "mine")
    (tmp_path / "mine/b.txt").unlink()
    said = refused("folder", tmp_path / "mine")
    assert "nothing written, because no utterance can be used: no .txt file (1 times; first b: " in said
