"""Tests of rows, names and files that real corpora hold beside the usual ones: they must not stop or mix the others."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from miniatures import text, tone

from ossicle.audio import audio_duration_s
from ossicle.corpora.tts import TtsOptions, prepare_tts
from ossicle.corpora.tts_engines import fill
from ossicle.data.manifest import read_manifest
from places import SHARED

HARD = SHARED / "data/hard_inputs"


def jsonl(path: Path, *entries: object) -> Path:
    return text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def parquet(path: Path, rows: list[dict]) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def cell(folder: Path, seconds: float) -> dict:
    return {"bytes": tone(folder / "cell.wav", seconds).read_bytes(), "path": "cell.wav"}


def test_rows_that_share_an_id_keep_their_own_audio(tmp_path, prepared):
    """As in FLEURS, whose ids are those of sentences; the durations name the recordings."""
    rows = [
        {"id": name, "audio": cell(tmp_path, seconds), "text": f"{seconds} s"}
        for name, seconds in (("7", 1.0), ("7", 3.0), ("what?", 0.5), ("what!", 1.5), ("a b", 2.0), ("a_b", 2.5))
    ]
    lines, report = prepared("parquet", parquet(tmp_path / "set/train.parquet", rows))
    assert [line["id"] for line in lines["train"]] == ["7", "7-2", "what?", "what!", "a b", "a_b"]
    for sample in read_manifest(tmp_path / "out/train.jsonl"):
        assert f"{audio_duration_s(sample.audio)} s" == sample.text
    assert report.dropped == {}


def test_relative_audio_of_a_table_is_beside_that_table(tmp_path, prepared):
    """Two folders hold a table of the same split and a recording of the same name."""
    for language, seconds in (("de", 1.0), ("fr", 2.0)):
        tone(tmp_path / f"set/{language}/1.wav", seconds)
        parquet(tmp_path / f"set/{language}/train.parquet", [{"audio": "1.wav", "text": language}])
    lines, _ = prepared("parquet", tmp_path / "set")
    assert [(line["text"], line["duration_s"]) for line in lines["train"]] == [("de", 1.0), ("fr", 2.0)]


def test_values_of_other_types_in_a_table(tmp_path, prepared):
    tone(tmp_path / "set/1.wav")
    rows = [{"audio": "1.wav", "id": 0, "text": "x", "speaker": 1.0}, {"audio": "", "id": None, "text": "y"}]
    lines, _ = prepared("parquet", parquet(tmp_path / "set/train.parquet", rows))
    assert [(line["id"], line["speaker"]) for line in lines["train"]] == [("0", "1")]
    assert [(line["id"], line["reason"]) for line in lines["dropped"]] == [("train-00000001", "no audio in the row")]


def test_a_damaged_table_is_named(tmp_path, refused):
    rows = [{"audio": cell(tmp_path, 1.0), "text": "x"}] * 64
    path = parquet(tmp_path / "set/train.parquet", rows)
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(bytes(content))
    assert "train.parquet: is damaged" in refused("parquet", path)


def test_files_of_the_same_name_in_folders_of_speakers(tmp_path, prepared):
    entries = []
    for speaker, seconds in (("spk1", 1.0), ("spk2", 2.0)):
        tone(tmp_path / f"nemo/{speaker}/000.wav", seconds)
        path = f"{speaker}\\000.wav" if speaker == "spk1" else f"{speaker}/000.wav"  # written on Windows
        entries.append({"audio_filepath": path, "duration": seconds, "text": speaker})
    entries.append({"audio_filepath": str(tmp_path / "nemo/spk1/000.wav"), "text": "spk1", "offset": 0.5})
    lines, _ = prepared("jsonl", jsonl(tmp_path / "nemo/train.json", *entries))
    assert [(line["id"], line["text"], line["duration_s"]) for line in lines["train"]] == [
        ("spk1/000", "spk1", 1.0), ("spk2/000", "spk2", 2.0), ("spk1/000-0.5", "spk1", 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        ({"text": 42}, "'42' is of type int, not a text"),
        ({"speaker": [1]}, "\"speaker\" is '[1]', which is not a text"),
        ({"id": {"a": 1}}, '"id" is "{\'a\': 1}", which is not a text'),
        ({"answer": "Eins", "target_lang": ["de"]}, '"target_language" is "[\'de\']", which is not a text'),
        ({"answer": "Eins", "target_lang": {}}, "\"target_language\" is '{}', which is not a text"),
        ({"answer": "Eins", "target_lang": "../.."}, "\"target_language\" is '../..'; write a tag"),
        ({"answer": "Eins", "target_lang": "x" * 300}, '"target_language" is \'xxxx'),
        ({"offset": -1}, '"start_s" is -1; write seconds, a number from 0 up'),
        ({"offset": True}, '"start_s" is True; write seconds'),
        ({"duration": float("nan")}, '"duration_s" is nan; write seconds'),
        ({"duration": 10**400}, "int too large to convert to float"),
        ({"audio_filepath": None}, "names no audio file"),
        ({"audio_filepath": "x" * 5000}, "/"),
        ({"audio_filepath": "a\0.wav"}, "/"),
        ({"text": "half an emoji \ud83d"}, '"text" is not UTF-8; save names and texts as UTF-8'),
    ],
)
def test_a_row_with_an_odd_value_is_listed_with_its_line(tmp_path, prepared, entry, detail):
    tone(tmp_path / "a.wav")
    usual = {"audio_filepath": "a.wav", "text": "x"}
    path = jsonl(tmp_path / "train.jsonl", usual | entry, usual | {"id": "good"})
    lines, _ = prepared("jsonl", path)
    assert [line["id"] for line in lines["train"] if line["id"] == "good"] == ["good"]
    assert lines.keys() == {"train", "dropped"}
    assert detail in lines["dropped"][0]["detail"]
    if lines["dropped"][0]["reason"] in ("invalid row", "invalid line", "not UTF-8"):
        assert lines["dropped"][0]["detail"].startswith(f"{path}:1: ")


def test_lines_that_are_not_json(tmp_path, prepared):
    tone(tmp_path / "a.wav")
    good = json.dumps({"audio_filepath": "a.wav", "text": "x"})
    bad = ["not json", "[1]", "9" * 5000, "[" * 100_000, '{"audio_filepath": "a.wav"', "null"]
    path = text(tmp_path / "train.jsonl", "\n".join([*bad, good]))
    with path.open("ab") as file:
        file.write(b'\n{"audio_filepath": "a.wav", "text": "sch\xf6n", "id": "b"}')
    lines, report = prepared("jsonl", path)
    assert [line["id"] for line in lines["train"]] == ["a"]
    assert [line["id"] for line in lines["dropped"]] == [*(f"train.jsonl:{i}" for i in range(1, 7)), "b"]
    assert report.dropped["invalid row"].count == 6


def lhotse(name: str, start: float, *supervisions: dict) -> dict:
    recording = {"id": "rec", "sources": [{"type": "file", "channels": [0], "source": "rec.wav"}], "duration": 10.0}
    return {"id": name, "start": start, "duration": 5.0, "recording": recording, "supervisions": list(supervisions)}


def supervision(start: float, duration: float, **more: object) -> dict:
    return {"id": "s1", "start": start, "duration": duration, "text": "words that are said", "speaker": 17, **more}


def test_a_supervision_that_a_window_divides_is_left_out(tmp_path, prepared):
    """Its words are spoken in 3-7 s; windows of 5 s hold 2 s of that each, and one window in a hundred all of it."""
    tone(tmp_path / "rec.wav", 10.0)
    cuts = [
        lhotse("c0", 0.0, supervision(3.0, 4.0)), lhotse("c1", 5.0, supervision(-2.0, 4.0)),
        lhotse("c2", 2.5, supervision(0.5, 4.0)), lhotse("c3", 2.999, supervision(-0.005, 4.0)),
        lhotse("c4", 2.5, supervision(0.5, 4.0)),
    ]  # fmt: skip
    lines, _ = prepared("lhotse", jsonl(tmp_path / "cuts.jsonl", *cuts))
    assert [(line["id"], line["start_s"], line["end_s"]) for line in lines["cuts"]] == [
        ("s1", 3.0, 7.0), ("s1-2", 2.999, 6.994),
    ]  # fmt: skip
    reasons = [line["reason"] for line in lines["dropped"]]
    assert reasons == ["supervision that its cut divides"] * 2 + ["repeated line"]
    assert lines["cuts"][0]["speaker"] == "17"


def test_invalid_cuts_and_supervisions(tmp_path, prepared):
    tone(tmp_path / "rec.wav", 10.0)
    bad = [supervision(0, 1, text=42), supervision(0, 1, id=None), supervision("x", 1), {"id": "s"}, 3]
    cuts = [lhotse("c0", 0.0, *bad, supervision(0, 1)), {"id": "c1", "recording": 5}, [1], {"id": []}]
    lines, _ = prepared("lhotse", jsonl(tmp_path / "cuts.jsonl", *cuts))
    assert [line["id"] for line in lines["cuts"]] == ["s1"]
    assert [line["detail"].split(" ")[0] for line in lines["dropped"]] == [
        *[f"{tmp_path}/cuts.jsonl:1:"] * 5, *(f"{tmp_path}/cuts.jsonl:{i}:" for i in (2, 3, 4)),
    ]  # fmt: skip


COMMON = "client_id\tpath\tsentence\n"


def test_malformed_rows_of_common_voice(tmp_path, prepared):
    for number in range(3):
        tone(tmp_path / f"de/clips/{number}.mp3")
    rows = ["c\t0.mp3\tEin Satz mit\tTabulator.", "c\t1.mp3", "c\t\tohne Datei", "c\t2.mp3\tLetzter Satz"]
    text(tmp_path / "de/train.tsv", COMMON + "\n".join(rows) + "\n")
    with (tmp_path / "de/train.tsv").open("ab") as file:
        file.write(b"c\t0.mp3\tsch\xf6n\n")
    lines, report = prepared("common-voice", tmp_path / "de")
    assert [line["text"] for line in lines["de.train"]] == ["Letzter Satz"]
    assert [line["id"] for line in lines["dropped"]] == ["train.tsv:2", "train.tsv:3", "train.tsv:4", "0"]
    assert report.dropped["invalid row"].first.endswith("train.tsv:2: has 4 cells, line 1 has 3; check for a missing "
                                                        "or extra tab")  # fmt: skip


def test_splits_and_escapes_of_covost(tmp_path, prepared):
    """The corpus' own script reads the tables with a backslash as escape, and puts train_covost into train."""
    for number in range(5):
        tone(tmp_path / f"clips/{number}.mp3")
    text(tmp_path / "validated.tsv", COMMON + "".join(f"c\t{n}.mp3\tSentence {n}.\n" for n in range(5)))
    rows = [
        r"0.mp3|\"你好\"，他说。|train", "1.mp3|eins|train_covost", "2.mp3|zwei|dev", "3.mp3|drei|valid",
        "1.mp3|uno|train", "9.mp3|neun|test", "4.mp3|a\\|b|test_covost",
    ]  # fmt: skip
    table = "\n".join(["path|translation|split", *rows, ""]).replace("|", "\t")
    text(tmp_path / "covost_v2.en_de.tsv", table)
    lines, _ = prepared("covost", tmp_path)
    assert [line["answer"] for line in lines["en.train.st-de"]] == ['"你好"，他说。', "eins"]
    assert [line["answer"] for line in lines["en.dev.st-de"]] == ["zwei"]
    assert [line["answer"] for line in lines["en.test.st-de"]] == ["a b"]
    assert [(line["id"], line["reason"]) for line in lines["dropped"]] == [
        ("covost_v2.en_de.tsv:5", "invalid row"),
        ("covost_v2.en_de.tsv:6", "invalid row"),
        ("9-de", "no sentence in validated.tsv"),
    ]


def test_a_segment_that_two_pairs_round_alike(tmp_path, prepared):
    tone(tmp_path / "en/audios/a.wav", 6.0)
    for target in ("de", "fr"):
        folder = tmp_path / "en" / target / "train"
        text(folder / "segments.lst", "a 0.001 2.0\na 0.004 2.0\nbad\n")
        text(folder / "segments.en", "One.\nTwo.\nThree.\n")
        text(folder / f"segments.{target}", "1\n2\n3\n")
    lines, _ = prepared("europarl-st", tmp_path)
    assert [(line["id"], line["text"]) for line in lines["en.train"]] == [("a-0.00-2.00", "One."),
                                                                         ("a-0.00-2.00-2", "Two.")]  # fmt: skip
    assert [line["id"] for line in lines["dropped"]] == ["segments.lst:3", "segments.lst:3"]


def test_questions_without_an_answer(tmp_path, prepared):
    questions = [
        {"id": "q1", "question": "Who?", "answers": [{"text": "anna"}]},
        {"id": "q2", "question": "When?", "answers": []},
        {"id": "q3", "question": "What?", "answers": [{"text": " "}, {"text": "red"}]},
        {"id": 4, "question": "Which?", "answers": [{"text": 4}]},
        {"id": "q1", "question": "Again?", "answers": [{"text": "yes"}]},
    ]
    paragraphs = [{"context": "anna saw", "qas": questions}, {"context": 3, "qas": questions}, 7]
    text(tmp_path / "spoken_test-v1.1.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))
    for name in ("0_0_0", "0_1_0", "0_2_0", "00_0_0", "0_0_٠"):
        tone(tmp_path / f"dev_wav/{name}.wav", 0.5)
    lines, _ = prepared("spoken-squad", tmp_path)
    assert [(line["id"], line["answer"]) for line in lines["test.qa"]] == [
        ("q1", "anna"), ("q3", "red"), ("q1-2", "yes"),
    ]  # fmt: skip
    assert [line["id"] for line in lines["dropped"]] == ["q2", "test-0_0-3", "test-0_1", "test-0_2"]


def test_every_file_of_a_folder_is_used_or_listed(tmp_path, prepared):
    root = tmp_path / "mine"
    for name in ("e.WAV", "f.aiff", "g.wav"):
        tone(root / name)
        text(root / f"{name[0]}.{'TXT' if name[0] == 'e' else 'txt'}", name)
    for name in ("h.m4a", "i.webm", "notes.md", "noext"):
        text(root / name, "not audio")
    text(root / "h.txt", "spoken")
    (root / "deep").mkdir()
    (root / "deep/up").symlink_to(root)  # a loop
    (root / "self.wav").symlink_to(root / "self.wav")
    lines, _ = prepared("folder", root)
    assert [(line["id"], line["text"]) for line in lines["speech"]] == [("e", "e.WAV"), ("f.aiff", "f.aiff"),
                                                                       ("g", "g.wav")]  # fmt: skip
    reasons = {line["id"]: line["reason"] for line in lines["dropped"]}
    assert reasons == {
        "h.m4a": "audio cannot be used", "i.webm": "no .txt file", "notes.md": "file that is not read",
        "noext": "file that is not read", "self": "no .txt file",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_a_file_name_or_a_text_that_is_not_utf8(tmp_path, prepared):
    root = tmp_path / "mine"
    tone(root / "a.wav")
    text(root / "a.txt", "hello")
    for suffix in (b"wav", b"txt"):
        shutil.copy(root / f"a.{suffix.decode()}", os.fsencode(root) + b"/sch\xf6n." + suffix)
    tone(root / "b.wav")
    (root / "b.txt").write_bytes(b"sch\xf6n")
    lines, _ = prepared("folder", root)
    assert [line["id"] for line in lines["speech"]] == ["a"]
    assert [(line["id"], line["reason"]) for line in lines["dropped"]] == [
        ("b", "transcript is not UTF-8"),
        ("sch\\udcf6n", "not UTF-8"),
    ]


def test_rows_of_fleurs_that_share_a_file_name_or_are_malformed(tmp_path, prepared):
    for name, seconds in (("a/1.wav", 1.0), ("b/1.wav", 2.0)):
        tone(tmp_path / f"en_us/audio/train/{name}", seconds)
    rows = ["7\ta/1.wav\tOne.\tone", "7\tb/1.wav\tTwo.\ttwo", "x\tc.wav\tBad.\tbad", "8\tc.wav"]
    text(tmp_path / "en_us/train.tsv", "\n".join(rows) + "\n")
    lines, _ = prepared("fleurs", tmp_path)
    assert [(line["id"], line["text"], line["duration_s"]) for line in lines["en_us.train"]] == [
        ("1", "One.", 1.0), ("1-2", "Two.", 2.0),
    ]  # fmt: skip
    assert [line["id"] for line in lines["dropped"]] == ["train.tsv:3", "train.tsv:4"]


SPEAK = (
    "import sys, numpy, soundfile\nsoundfile.write(sys.argv[1], numpy.full(len(sys.stdin.read()) * 100, 0.1), 8000)\n"
)


def test_generated_speech_has_a_file_of_its_own(tmp_path):
    text(tmp_path / "speak.py", SPEAK)
    entries = [
        {"id": "x/1", "en": "short"}, {"id": "x_1", "en": "a longer text"}, {"id": "x_1", "en": "the longest text"},
        {"id": "../../up", "en": "up"}, {"id": "y" * 300, "en": "long"}, {"id": [1], "en": "odd"}, {"en": 42}, "text",
        {"context": 5, "question": "?"}, {"context": "about", "question": "?", "answers": [{"no": 1}]},
        {"context": "zero \0", "language": "../de"},
    ]  # fmt: skip
    texts = jsonl(tmp_path / "texts.jsonl", *entries)
    options = TtsOptions(command=f"{sys.executable} {tmp_path / 'speak.py'} {{out}}")
    report = prepare_tts(texts, tmp_path / "deep/out", options, show=False)
    lines = read_manifest(tmp_path / "deep/out/texts.jsonl")
    assert [line.id for line in lines] == ["x/1", "x_1", "x_1-2", "../../up", "y" * 300, "texts-000010"]
    for line in lines:
        assert audio_duration_s(line.audio) == len(line.text) / 80
        assert line.audio.parent == tmp_path / "deep/out/audio"
    assert {name: reason.count for name, reason in report.dropped.items()} == {"invalid row": 5, "invalid line": 1}


def test_a_text_is_never_an_option_of_the_command():
    assert fill("say {text} -o {out}", {"text": "-5 degrees", "out": "-x.wav"}) == [
        "say",
        " -5 degrees",
        "-o",
        " -x.wav",
    ]
    assert fill("say -{text}", {"text": "v"}) == ["say", "-v"]


@pytest.mark.skipif(not HARD.is_dir(), reason=f"{HARD} is not there")
@pytest.mark.parametrize(
    ("corpus", "source", "counts"),
    [
        ("parquet", "parquet/same_id.parquet", {"same_id": 4}),
        ("parquet", "parquet/ids_that_collide.parquet", {"ids_that_collide": 4}),
        ("jsonl", "nemo/train.json", {"train": 6}),
        ("jsonl", "nemo/win.json", {"win": 2}),
        ("common-voice", "common_voice/de", {"de.train": 2}),
        ("spoken-squad", "spoken_squad", {"test.qa": 2}),
        ("mustc", "mustc", {"dev": 2, "dev.st-de": 2}),
        ("lhotse", "lhotse/types.jsonl", {"types": 1}),
    ],
)
def test_small_inputs_that_failed(prepared, corpus, source, counts):
    _, report = prepared(corpus, HARD / source)
    assert {name: count.lines for name, count in report.manifests.items()} == counts
