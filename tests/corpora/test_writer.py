"""Tests of what all corpora share: order, counts, resuming, constant memory."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from miniatures import text, tone

from ossicle import progress
from ossicle.batch import Sample
from ossicle.corpora import CORPORA, writer
from ossicle.corpora.items import Dropped, Item, Options, Reached, Recording
from ossicle.corpora.prepare import prepare
from ossicle.corpora.report import Report
from ossicle.corpora.writer import JOURNAL_NAME, STATED_DURATION_TOLERANCE_S, Limits, progress_of, write
from ossicle.data.dataset import DURATION_TOLERANCE_S
from ossicle.data.manifest import read_manifest
from ossicle.errors import CorpusError


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    return tone(tmp_path / "a.wav", 2.0)


def items(speech: Path, count: int, *, stop_before: int | None = None) -> Iterator[Item]:
    for i in range(count):
        if i == stop_before:
            raise KeyboardInterrupt
        yield Recording((("all", Sample(id=f"u{i}", audio=speech, text=f"line {i}")),))
        yield Reached((i + 1) / count)


def run(out: Path, source: Iterator[Item], **about: object) -> Report:
    display = progress_of("test", enabled=False)
    with ThreadPoolExecutor(2) as pool:
        return write(source, out, {"corpus": "test", **about}, Limits(), pool, progress=display)


def ids(out: Path, name: str = "all") -> list[str]:
    return [sample.id for sample in read_manifest(out / f"{name}.jsonl")]


def test_lines_come_in_the_order_of_the_corpus(speech, tmp_path):
    run(tmp_path / "out", items(speech, 50))
    assert ids(tmp_path / "out") == [f"u{i}" for i in range(50)]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"all.jsonl", "prepare.json"}


def test_an_interrupted_call_resumes(speech, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, items(speech, 2000, stop_before=1500))
    assert not (out / "all.jsonl").exists()
    journal = out / JOURNAL_NAME
    done = len(journal.read_text().splitlines()) - 1
    assert 0 < done < 1500
    journal.write_bytes(journal.read_bytes() + b'{"id": "u9')  # the kill cut this line off
    probed: list[Path] = []
    monkeypatch.setattr(writer, "_file_duration_s", lambda path: probed.append(path) or 2.0)
    report = run(out, items(speech, 2000))
    assert len(probed) == 2000 - done
    assert ids(out) == [f"u{i}" for i in range(2000)]
    assert report.manifests["all"].speech_s == 4000
    assert not journal.exists()


def test_a_killed_process_leaves_no_manifest_and_its_work_is_kept(tmp_path):
    source, out = tmp_path / "mine", tmp_path / "out"
    for i in range(300):
        text(source / f"{i:03d}.txt", f"number {i}")
    recording = tone(source / "000.wav", 0.2)
    for i in range(1, 300):
        os.link(recording, source / f"{i:03d}.wav")
    program = (
        "import sys, time; from pathlib import Path; from ossicle.corpora import writer\n"
        "from ossicle.corpora.prepare import prepare\n"
        "probe = writer._file_duration_s\n"
        "writer._file_duration_s = lambda path: time.sleep(0.02) or probe(path)\n"
        "prepare('folder', Path(sys.argv[1]), Path(sys.argv[2]), jobs=1)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(source), str(out)])
    journal = out / JOURNAL_NAME
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 5):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(journal.read_bytes().splitlines()) - 1
    assert 0 < done < 300
    assert not (out / "speech.jsonl").exists()
    report = prepare("folder", source, out, show=False)
    assert ids(out, "speech") == [f"{i:03d}" for i in range(300)]
    assert not report.already_done
    assert prepare("folder", source, out, show=False).already_done


def test_a_changed_source_is_not_resumed(speech, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, items(speech, 2000, stop_before=1500))
    changed = (item for item in items(speech, 2000) if not isinstance(item, Recording) or item.lines[0][1].id != "u3")
    with pytest.raises(
        CorpusError, match=r"the source has changed: item \d+ was 'u\d+' and is now 'u\d+'; remove the file"
    ):
        run(out, changed)
    with pytest.raises(CorpusError, match=r"the source has \d+ fewer items than before"):
        run(out, items(speech, 3))
    with pytest.raises(CorpusError, match=r"\.prepare\.partial: is an unfinished preparation of another corpus"):
        run(out, items(speech, 2000), options="other")


def test_another_corpus_or_other_options_do_not_overwrite(speech, tmp_path):
    text(speech.with_suffix(".txt"), "hello")
    source, out = tmp_path, tmp_path / "out"
    prepare("folder", source, out, show=False)
    before = (out / "speech.jsonl").read_bytes()
    with pytest.raises(CorpusError, match="already contains"):
        prepare("folder", source, out, Options(lower=True), show=False)
    assert (out / "speech.jsonl").read_bytes() == before
    (out / "speech.jsonl").unlink()
    assert not prepare("folder", source, out, show=False).already_done


def test_the_corpus_is_read_at_most_one_window_ahead(speech, tmp_path, monkeypatch):
    """The number of items in memory is bounded."""
    read, written, ahead = 0, 0, []

    def counted() -> Iterator[Item]:
        nonlocal read
        for item in items(speech, 5000):
            read += 1
            yield item

    entry = writer._entry

    def counting(*arguments: object) -> str:
        nonlocal written
        written += 1
        ahead.append(read - 2 * written)
        return entry(*arguments)

    monkeypatch.setattr(writer, "_entry", counting)
    run(tmp_path / "out", counted())
    assert written == 5000
    assert writer.WINDOW - 2 <= max(ahead) <= writer.WINDOW


def test_a_repeated_line_is_kept_once_per_manifest(speech, tmp_path):
    line = Sample(id="a", audio=speech, text="x")
    twice = [Recording((("one", line), ("two", line))), Recording((("one", line),))]
    report = run(tmp_path / "out", iter(twice))
    assert ids(tmp_path / "out", "one") == ids(tmp_path / "out", "two") == ["a"]
    assert report.dropped["repeated line"].first == "a: in one.jsonl; the first line is kept"


def test_several_lines_about_a_recording_count_its_hours_once(speech, tmp_path):
    lines = tuple(("qa", Sample(id=f"q{i}", audio=speech, text="x")) for i in range(3))
    count = run(tmp_path / "out", iter([Recording(lines)])).manifests["qa"]
    assert (count.lines, count.recordings, count.speech_s) == (3, 1, 2.0)


def test_audio_is_made_before_it_is_listed(tmp_path, speech):
    def make(path: Path) -> dict[str, int]:
        path.write_bytes(speech.read_bytes())
        return {"pitch": 50}

    made = Recording((("all", Sample(id="m", audio=Path("audio/m.wav"), text="x")),), make)
    run(tmp_path / "out", iter([made]))
    line = json.loads((tmp_path / "out/all.jsonl").read_text())
    assert (line["audio"], line["pitch"]) == ("audio/m.wav", 50)
    assert read_manifest(tmp_path / "out/all.jsonl")[0].duration_s == 2.0


def test_a_wrong_folder_is_given_up_early(tmp_path, speech):
    read = []
    gone = (
        read.append(i)
        or Recording(
            (
                (
                    "all",
                    Sample(id=f"{i}", audio=tmp_path / "gone"),
                ),
            )
        )
        for i in range(10**9)
    )
    with pytest.raises(CorpusError, match=r"the first 1000 are all left out: no such audio file \(.*gone: there is no"):
        run(tmp_path / "out", gone)
    assert len(read) <= 1000 + writer.WINDOW


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(CorpusError, match=r"no utterance can be used: no text \(2 times; first a: why\)"):
        run(tmp_path / "out", iter([Dropped("a", "no text", "why"), Dropped("b", "no text")]))
    with pytest.raises(CorpusError, match="the source contains nothing that matches these options"):
        run(tmp_path / "out", iter([]))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_report_prints_counts_and_reasons(speech, tmp_path, capsys):
    broken = text(tmp_path / "b.wav", "no audio")
    made = partial(Sample, text="x")
    report = run(
        tmp_path / "out",
        iter([
            Recording((("all", made(id="a", audio=speech)),)),
            Recording((("all", made(id="b", audio=broken)),)),
            Dropped("c", "no text"),
        ]),
    )  # fmt: skip
    report.print(Path("[/red]"))  # not markup
    assert "manifests in [/red]" in capsys.readouterr().out
    report.print(Path("out"))
    said = capsys.readouterr().out
    assert ["all.jsonl", "1", "1", "0.00"] in [line.split() for line in said.splitlines()]
    assert f"left out, audio cannot be used: 1 (first: b: {broken}: is not an audio file" in said
    assert "left out, no text: 1 (first: c)" in said
    assert "complete list: out/dropped.jsonl" in said


def test_the_progress_shows_recordings_throughput_and_hours(speech, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress_of("test corpus") as shown, ThreadPoolExecutor(2) as pool:
        write(items(speech, 100), tmp_path / "out", {}, Limits(), pool, progress=shown)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"test corpus +100/100 %, .*/s +100 recordings, \d+/s, 0\.06 h", last), last


def test_durations_are_checked_as_by_the_dataset():
    assert STATED_DURATION_TOLERANCE_S == DURATION_TOLERANCE_S


def test_a_corpus_of_your_own(speech, tmp_path):
    def read(source: Path, options: Options) -> Iterator[Item]:
        return items(speech, 3)

    report = prepare(read, tmp_path, tmp_path / "out", show=False)
    assert report.about["corpus"].endswith("test_a_corpus_of_your_own.<locals>.read")
    assert ids(tmp_path / "out") == ["u0", "u1", "u2"]
    assert prepare(read, tmp_path, tmp_path / "out", show=False).already_done


def test_unknown_corpora_are_named(tmp_path):
    with pytest.raises(CorpusError, match="there is no corpus 'timit'; choose one of mustc, gigaspeech, "):
        prepare("timit", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("options", [{"language": "klingon"}, {"targets": ("de", "")}, {"language": "e"}])
def test_what_is_no_language_is_refused(options, tmp_path):
    with pytest.raises(CorpusError, match="is no language: give a code such as en, de or yue"):
        prepare("folder", tmp_path, tmp_path / "out", Options(**options))


def test_every_corpus_of_the_table_has_its_function_and_known_options():
    from importlib import import_module

    fields = set(Options.__dataclass_fields__)
    for corpus in CORPORA.values():
        assert callable(import_module(f"ossicle.corpora.{corpus.module}").read)
        assert corpus.options <= fields
        assert len(corpus.help) <= 60  # one line of the help page


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_every_corpus_refuses_an_empty_folder_and_a_file_that_is_something_else(tmp_path, name):
    (tmp_path / "empty").mkdir()
    file = text(tmp_path / "file.txt", "{")
    for source in (tmp_path / "empty", file):
        with pytest.raises(CorpusError) as caught:
            prepare(name, source, tmp_path / "out", show=False)
        assert str(source) in str(caught.value)
        assert f"expected {CORPORA[name].layout}" in str(caught.value)
