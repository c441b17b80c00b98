"""Tests of Europarl-ST and FLEURS."""

from pathlib import Path

import pytest
from miniatures import text, tone


@pytest.fixture
def europarl(tmp_path: Path) -> Path:
    root = tmp_path / "v1.1"
    tone(root / "en/audios/en.2008.22.1-097.wav", 6.0)
    shared = "en.2008.22.1-097 0.5 2.5\n"
    for target, more, words in (("de", "en.2008.22.1-097 3.0 6.0\n", "Danke.\nJa.\n"), ("fr", "", "Merci.\n")):
        folder = root / "en" / target / "train"
        text(folder / "segments.lst", shared + more)
        text(folder / "segments.en", "Thanks.\n" + ("Yes.\n" if more else ""))
        text(folder / f"segments.{target}", words)
        noisy = root / "en" / target / "train-noisy"
        text(noisy / "segments.lst", shared)
    return root


def test_europarl_st(europarl, prepared):
    lines, _ = prepared("europarl-st", europarl)
    assert lines.keys() == {"en.train", "en.train.st-de", "en.train.st-fr"}  # train-noisy only if it is named
    assert lines["en.train"] == [  # two targets share the first segment
        {"id": f"en.2008.22.1-097-{begin:.2f}-{end:.2f}", "audio": str(europarl / "en/audios/en.2008.22.1-097.wav"),
         "text": words, "language": "en", "task": "asr", "duration_s": end - begin, "start_s": begin, "end_s": end}
        for begin, end, words in ((0.5, 2.5, "Thanks."), (3.0, 6.0, "Yes."))
    ]  # fmt: skip
    assert [(line["id"], line["answer"]) for line in lines["en.train.st-fr"]] == [
        ("en.2008.22.1-097-0.50-2.50-fr", "Merci.")
    ]


def test_europarl_st_choices(europarl, prepared):
    lines, _ = prepared("europarl-st", europarl / "en", targets=("fr",), tasks=("st",))
    assert lines.keys() == {"en.train.st-fr"}


def test_europarl_st_broken(europarl, refused):
    folder = europarl / "en/de/train"
    text(folder / "segments.lst", "en.2008.22.1-097 0.5\nx\n")
    assert "segments.lst:1: 'en.2008.22.1-097 0.5' is invalid; expected the name" in refused(
        "europarl-st", europarl, targets=("de",)
    )
    text(folder / "segments.de", "Danke.\n")
    text(folder / "segments.lst", "en.2008.22.1-097 0.5 2.5\n" * 2)
    assert "segments.lst:2: segments.en, segments.de and this file" in refused("europarl-st", europarl, targets=("de",))
    (folder / "segments.de").unlink()
    assert "segments.de: there is no such file; expected en/{audios/" in refused("europarl-st", europarl)
    assert "has no target 'ru'; choose from de, fr" in refused("europarl-st", europarl, targets=("ru",))
    (europarl / "en/audios/en.2008.22.1-097.wav").rename(europarl / "en/audios/en.2008.22.1-097.m4a")
    assert "contains .m4a files, which cannot be read; convert them in that folder: for f in" in refused(
        "europarl-st", europarl
    )
    assert "has no en/audios, de/audios" in refused("europarl-st", folder)


@pytest.fixture
def fleurs(tmp_path: Path) -> Path:
    root = tmp_path / "fleurs"
    rows = {
        "en_us": "7\t111.wav\tThe cat, of course.\tthe cat of course\tt h e\t16000\tFEMALE\n"
        "7\t112.wav\tThe cat, of course.\tthe cat of course\tt h e\t16000\tMALE\n"
        "9\t113.wav\tOnly English.\tonly english\to n\t16000\tMALE\n",
        "de_de": "7\t211.wav\tDie Katze, klar.\tdie katze klar\td i e\t16000\tMALE\n",
    }
    for language, table in rows.items():
        text(root / language / "test.tsv", table)
        for line in table.splitlines():
            tone(root / language / "audio/test" / line.split("\t")[1])
    return root


def test_fleurs(fleurs, prepared):
    lines, report = prepared("fleurs", fleurs, language="en_us", targets=("de",))
    assert lines.keys() == {"en_us.test", "en_us.test.st-de"}
    assert lines["en_us.test"][0] == {
        "id": "111",
        "audio": str(fleurs / "en_us/audio/test/111.wav"),
        "text": "The cat, of course.",
        "language": "en",
        "task": "asr",
        "duration_s": 1.0,
        "sentence": "7",
        "gender": "female",
    }
    assert [(line["id"], line["answer"], line["target_language"]) for line in lines["en_us.test.st-de"]] == [
        ("111-de", "Die Katze, klar.", "de"),
        ("112-de", "Die Katze, klar.", "de"),
    ]
    assert report.manifests["en_us.test"].lines == 3


def test_fleurs_all_languages(fleurs, prepared):
    assert prepared("fleurs", fleurs)[0].keys() == {"en_us.test", "de_de.test"}


def test_fleurs_broken(fleurs, refused):
    assert "0 folders match the language 'fr'; choose one of de_de, en_us" in refused("fleurs", fleurs, language="fr")
    text(fleurs / "de_de/test.tsv", "id\tfile_name\traw_transcription\ttranscription\n")
    assert "test.tsv:1: expected id, file, text, ..." in refused("fleurs", fleurs / "de_de")
    (fleurs / "en_us/audio/test").rename(fleurs / "en_us/audio/dev")
    assert "audio/test: there is no such folder; unpack the archive of the split there; expected en_us/" in refused(
        "fleurs", fleurs / "en_us"
    )
    assert "has no folder with train.tsv" in refused("fleurs", fleurs.parent)
