"""A corpus that is prepared in parts gives the same files as one call."""

import json
from pathlib import Path

import pytest
from miniatures import text, tone

from ossicle.corpora.items import Options
from ossicle.corpora.prepare import prepare
from ossicle.errors import ConfigError, CorpusError
from ossicle.shards import Shard


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    lines = []
    for i in range(11):
        tone(folder / f"{i}.wav", 0.5 + i / 10)
        lines.append({"id": f"u{i % 9}", "audio": f"{i}.wav", "text": f"text {i}"})  # two ids are repeated
        lines.append({"id": f"s{i}", "audio": f"{i}.wav", "text": "", "answer": "ja", "target_language": "de"})
    lines[4]["audio"] = "missing.wav"
    lines[6] = {"id": "empty"}
    text(folder / "all.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(source: Path, out: Path, shard: str | None = None, **options):
    part = None if shard is None else Shard.parse(shard)
    return prepare("jsonl", source, out, Options(**options), jobs=2, show=False, shard=part)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_parts_in_any_order_give_the_files_of_one_call(source, tmp_path, count):
    whole = run(source, tmp_path / "a" / "out")
    expected = files(tmp_path / "a" / "out")
    assert {"all.jsonl", "all.st-de.jsonl", "dropped.jsonl", "prepare.json"} == set(expected)
    out = tmp_path / "b" / "out"
    for number in range(count, 0, -1):
        report = run(source, out, f"{number}/{count}")
        if number > 1:
            assert report.waiting.startswith(f"{out}: shard {number}/{count} is finished; {number - 1} of {count} are")
            assert not list(out.glob("*.jsonl"))
    assert files(out) == expected
    assert (report.manifests, report.dropped) == (whole.manifests, whole.dropped)
    assert run(source, out, f"1/{count}").already_done


def test_a_finished_part_does_no_work_again_and_an_interrupted_one_continues(source, tmp_path, monkeypatch):
    from ossicle.corpora import writer

    run(source, tmp_path / "a")
    out, probed, limit = tmp_path / "b", [], [100]
    measure = writer.audio_duration_s

    def measured(path: Path) -> float:
        probed.append(path.name)
        if len(probed) > limit[0]:
            raise RuntimeError("killed")
        return measure(path)

    monkeypatch.setattr(writer, "_file_duration_s", measured)
    run(source, out, "2/2")
    limit[0] = done = len(probed)
    run(source, out, "2/2")
    assert len(probed) == done  # nothing is probed again
    limit[0] += 4
    with pytest.raises(RuntimeError):
        run(source, out, "1/2")
    before = len(probed)
    limit[0] = 100
    run(source, out, "1/2")
    assert len(probed) - before < 11 - 3  # it continues after what the journal has
    assert files(out) == files(tmp_path / "a")


def test_parts_of_other_options_are_refused(source, tmp_path):
    run(source, tmp_path / "out", "1/2")
    with pytest.raises(CorpusError, match="is a part of another corpus or of other options"):
        run(source, tmp_path / "out", "2/2", lower=True)


@pytest.mark.parametrize("given", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0", "1/2/3"])
def test_a_shard_that_does_not_exist(given):
    with pytest.raises(ConfigError, match="write I/N with I from 1 to N"):
        Shard.parse(given)
