"""Tests of ids, file names and the lines that a manifest accepts, with any values that a corpus may hold."""

import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import tone

from ossicle.batch import Sample
from ossicle.corpora import manifests
from ossicle.corpora.items import Dropped, Item, Options, Recording
from ossicle.corpora.naming import MAX_NAME_BYTES, Names, safe_name
from ossicle.corpora.prepare import prepare
from ossicle.corpora.report import Report
from ossicle.corpora.writer import Limits, progress_of, write
from ossicle.data.manifest import read_manifest
from ossicle.errors import CorpusError

ODD = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("x" * 300)
    | st.sampled_from(["../..", "a/b", "a_b", "what?", "what!", "\ud83d", "\0", "-x", ".", "..", "de", "dropped", "42"])
    | st.lists(st.text(max_size=3), max_size=2) | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)  # fmt: skip
FIELDS = ["id", "text", "lang", "speaker", "offset", "duration", "prompt", "answer", "source_lang", "target_lang"]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone(tmp_path_factory.mktemp("speech") / "a.wav", 0.1)


def run(items: Iterator[Item], out: Path) -> Report:
    with ThreadPoolExecutor(2) as pool:
        return write(items, out, {}, Limits(), pool, progress=progress_of("test", enabled=False))


def checked(out: Path) -> list[Sample]:
    """Return the lines of all manifests, as the reader sees them."""
    paths = [path for path in out.glob("*.jsonl") if path.name != "dropped.jsonl"]
    assert all(path.parent == out for path in paths)
    return [sample for path in paths for sample in read_manifest(path)]


def dropped(out: Path) -> list[dict]:
    path = out / "dropped.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(st.dictionaries(st.sampled_from(FIELDS), ODD), min_size=1, max_size=8))
def test_what_prepare_writes_is_read_and_nothing_is_lost(records, speech):
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "train.jsonl", Path(folder) / "out"
        good = {"audio_filepath": str(speech), "text": "fine", "id": "good"}
        lines = [json.dumps(record | {"audio_filepath": str(speech)}) for record in (*records, good)]
        source.write_text("\n".join(lines))
        report = prepare("jsonl", source, out, show=False)
        written, left_out = checked(out), dropped(out)
        assert sum(count.lines for count in report.manifests.values()) == len(written)
        assert sum(reason.count for reason in report.dropped.values()) == len(left_out)
        assert len(written) + len(left_out) >= len(records) + 1
        assert any(sample.id == "good" for sample in written)
        assert {path.name for path in Path(folder).iterdir()} == {"train.jsonl", "out"}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(ODD.filter(lambda name: name != ""), min_size=1, max_size=8))
def test_each_recording_that_is_made_has_a_file_of_its_own(names, speech):
    """The text of each line names the recording that its audio must contain, whatever its id."""

    def make(number: int, path: Path) -> dict:
        path.write_bytes(speech.read_bytes() + bytes([number]))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        samples = [Sample(id=name, audio=Path(f"audio/{name}.wav"), text=str(i)) for i, name in enumerate(names)]
        samples.append(Sample(id="good", audio=Path("audio/good.wav"), text=str(len(names))))
        items = (Recording((("all", line),), partial(make, i)) for i, line in enumerate(samples))
        run(items, out)
        lines = checked(out)
        for sample in lines:
            assert sample.audio.read_bytes()[-1] == int(sample.text)
            assert sample.audio.is_relative_to(out / "audio")
        assert len(lines) + len(dropped(out)) == len(samples)
        assert len({os.path.normcase(sample.audio) for sample in lines}) == len(lines)


def test_repeated_ids_get_numbers_and_equal_lines_are_left_out(speech, tmp_path):
    other = tone(tmp_path / "b.wav")
    lines = [("a", speech, "x"), ("a", other, "y"), ("a", speech, "x"), ("a-2", speech, "z"), ("a", speech, "w")]
    items = [Recording((("all", Sample(id=name, audio=path, text=text)),)) for name, path, text in lines]
    run(iter(items), tmp_path / "out")
    assert [(sample.id, sample.text) for sample in read_manifest(tmp_path / "out/all.jsonl")] == [
        ("a", "x"), ("a-2", "y"), ("a-2-2", "z"), ("a-3", "w"),
    ]  # fmt: skip
    assert [entry["reason"] for entry in dropped(tmp_path / "out")] == ["repeated line"]


def test_ids_do_not_depend_on_the_limits(speech, tmp_path):
    """An utterance that is left out for its duration keeps its id, so that the others keep theirs."""
    long = tone(tmp_path / "long.wav", 3.0)

    def read(source: Path, options: Options) -> Iterator[Item]:
        for path in (long, speech, speech):
            yield Recording((("all", Sample(id="a", audio=path, text=path.stem)),))

    prepare(read, tmp_path, tmp_path / "all", show=False)
    prepare(read, tmp_path, tmp_path / "short", Options(max_s=1.0), show=False)
    assert [sample.id for sample in read_manifest(tmp_path / "all/all.jsonl")] == ["a", "a-2"]
    assert [sample.id for sample in read_manifest(tmp_path / "short/all.jsonl")] == ["a-2"]


def test_a_thousand_equal_ids_are_fast_and_unique(tmp_path):
    items = (Recording((("all", Sample(id="7", audio=Path("audio/7.wav"), text=str(i))),), dict) for i in range(1000))
    found = [item.lines[0][1] for item in Names(tmp_path).apply(items)]
    assert len({line.id for line in found}) == len({line.audio for line in found}) == 1000
    assert (found[999].id, found[999].audio) == ("7-1000", Path("audio/7-1000.wav"))


def test_file_names_differ_without_upper_case_and_in_another_composition(tmp_path):
    names = ["Ä", "ä", unicodedata.normalize("NFD", "ä"), "a.b", "A.B"]
    items = (Recording((("all", Sample(id=name, audio=Path(f"audio/{name}.wav"))),), dict) for name in names)
    found = [item.lines[0][1].audio.as_posix() for item in Names(tmp_path).apply(items)]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(names)


def test_names_stay_below_their_folder_and_short_enough():
    assert safe_name("../../x") == "_._.._x"
    assert safe_name("-rf") == "_rf"
    long = [safe_name("ä" * 300 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name.encode()) <= MAX_NAME_BYTES for name in long)
    assert all(safe_name(name) == name for name in long)


def test_languages_and_manifests_cannot_name_another_folder(speech, tmp_path):
    def line(name: str, manifest: str, **fields: object) -> Item:
        return Recording(((manifest, Sample(id=name, audio=speech, text="x", **fields)),))

    items = [
        line("a", "../../evil"), line("b", "dropped"), line("c", "x" * 300), line("d", "ok", language="../de"),
        line("e", "ok", language="x" * 300), line("f", "ok", target_language="de\n"), line("g", "ok", language="zh-CN"),
    ]  # fmt: skip
    report = run(iter(items), tmp_path / "deep/out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert {"_._.._evil", "dropped-corpus", "ok"} < report.manifests.keys()
    assert [entry["id"] for entry in dropped(tmp_path / "deep/out")] == ["d", "e", "f"]
    assert (
        dropped(tmp_path / "deep/out")[0]["detail"] == """"language" is '../de'; write a tag such as "de" or "zh-CN\""""
    )


def test_more_manifests_than_open_files(speech, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_OPEN", 2)
    items = [
        Recording(((f"m{i % 5}", Sample(id=str(i), audio=speech, text="x")),)) for i in range(20)
    ]  # fmt: skip
    run(iter(items), tmp_path / "out")
    assert [sample.id for sample in read_manifest(tmp_path / "out/m3.jsonl")] == ["3", "8", "13", "18"]


def test_two_preparations_of_one_folder(speech, tmp_path):
    def inner(source: Path, options: Options) -> Iterator[Item]:
        yield Recording((("all", Sample(id="a", audio=speech)),))

    def outer(source: Path, options: Options) -> Iterator[Item]:
        with pytest.raises(CorpusError, match="out: another process is writing this folder; wait for it, or choose"):
            prepare(inner, source, tmp_path / "out", show=False)
        yield from inner(source, options)

    assert prepare(outer, tmp_path, tmp_path / "out", show=False).manifests["all"].lines == 1


def test_a_damaged_report_or_journal_is_named(speech, tmp_path):
    def read(source: Path, options: Options) -> Iterator[Item]:
        yield Recording((("all", Sample(id="a", audio=speech)),))

    out = tmp_path / "out"
    prepare(read, tmp_path, out, show=False)
    for content in ("", "[]", "{}", '{"about": 1, "manifests": {"a": 3}, "dropped": {}}'):
        (out / "prepare.json").write_text(content)
        with pytest.raises(CorpusError, match=r"prepare\.json: is damaged .*; remove it to prepare the corpus again"):
            prepare(read, tmp_path, out, show=False)
    (out / ".prepare.partial").write_text("{}\n[\n")
    with pytest.raises(CorpusError, match=r"\.prepare\.partial:2: is damaged; remove the file to start again"):
        prepare(read, tmp_path, out, show=False)


def test_a_full_disk_stops_and_resumes(speech, tmp_path):
    """An error of the disk is not the fault of one utterance, which would be left out for it."""
    full = [True]

    def make(path: Path) -> dict:
        if full:
            raise OSError(28, "No space left on device")
        path.write_bytes(speech.read_bytes())
        return {}

    def items() -> Iterator[Item]:
        yield Recording((("all", Sample(id="a", audio=Path("audio/a.wav"))),), make)

    with pytest.raises(CorpusError, match="No space left on device; correct this and run the command again"):
        run(items(), tmp_path / "out")
    full.clear()
    assert run(items(), tmp_path / "out").manifests["all"].lines == 1


def test_left_out_items_are_listed_as_readable_text(tmp_path, speech):
    items = [Dropped("a\ud83d\n", "odd", "\x1b[31m" + "x" * 5000), Recording((("all", Sample(id="a", audio=speech)),))]
    run(iter(items), tmp_path / "out")
    entry = dropped(tmp_path / "out")[0]
    assert entry["id"] == "a\\ud83d "
    assert entry["detail"].startswith(" [31mxxx")
    assert len(entry["detail"]) == 400
