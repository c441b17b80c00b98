"""A manifest that is indexed gives the samples, batches and errors of one that is read into a list."""

import json
import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from ossicle.batch import Sample
from ossicle.data import manifest_index
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.manifest import read_manifest
from ossicle.data.sampler import BatchSampler
from ossicle.data.table import SampleTable, open_manifests, outlines, take
from ossicle.errors import DataError, ManifestError
from ossicle.prompts import learned_instructions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ossicle" / "manifests"


def write(path: Path, lines: list[dict[str, object] | str], start: bytes = b"") -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    path.write_bytes(start + text.encode())
    return path


def some_lines(count: int, name: str = "a") -> list[dict[str, object] | str]:
    """Return lines of every kind: two tasks, segments, unknown durations, other fields, blank lines."""
    lines: list[dict[str, object] | str] = []
    for i in range(count):
        line: dict[str, object] = {"id": f"{name}{i}", "audio": f"wav/ü{i % 7}.wav", "note": {"at": [i]}}
        if i % 3:
            line |= {"text": "x" * (i % 5) or None, "language": "de" if i % 2 else "en", "duration_s": 1 + i / 10}
        if i % 4 == 0:
            line |= {"task": "st", "instruction": f"say {i % 8}", "answer": "ja", "target_language": "fr"}
        if i % 5 == 0:
            line |= {"start_s": 0.5, "end_s": 1.0 + i / 10}
        lines += [line, "  "] if i % 6 == 0 else [line]
    return lines


@pytest.fixture
def manifests(tmp_path):
    return [
        write(tmp_path / "one.jsonl", some_lines(40), start=b"\xef\xbb\xbf"),
        write(tmp_path / "two.jsonl", some_lines(25, "b")),
    ]


def both(paths: list[Path]) -> tuple[list[Sample], SampleTable]:
    table = open_manifests(paths, large_bytes=0)
    assert isinstance(table, SampleTable)
    small = open_manifests(paths)
    assert isinstance(small, list)
    return small, table


def test_samples_are_the_same_in_any_order(manifests):
    small, table = both(manifests)
    assert list(table) == small == [sample for path in manifests for sample in read_manifest(path)]
    assert (len(table), table[-1], list(table[5:50:7])) == (65, small[-1], small[5:50:7])
    order = np.random.default_rng(0).permutation(65)
    shuffled = table.take(order).take([3, 60, 1])
    assert list(shuffled) == [small[order[i]] for i in (3, 60, 1)]
    with pytest.raises(IndexError):
        table[65]


def test_outlines_tell_what_training_asks_of_all_lines(manifests):
    small, table = both(manifests)
    positions = list(range(64, 0, -2))
    for have, want in zip(outlines(take(table, positions)), take(small, positions), strict=True):
        for name in ("task", "language", "target_language", "instruction"):
            assert getattr(have, name) == getattr(want, name)
        assert (have.text is None, bool(have.answers)) == (want.text is None, bool(want.answers))
        assert bool((have.text or "").strip()) == bool((want.text or "").strip())
    assert learned_instructions(outlines(table)) == learned_instructions(small) == {"st/fr": "say 0"}


def test_more_instructions_than_are_kept(manifests, monkeypatch):
    monkeypatch.setattr(manifest_index, "MOST_OUTLINES", 3)
    small, table = both(manifests)
    assert table.files[0].outlines is None
    assert list(outlines(table)) == small


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_a_subset_is_the_same(manifests, fraction):
    small, table = both(manifests)
    assert list(subset(table, fraction, seed=3)) == list(subset(small, fraction, seed=3))


def with_audio(folder: Path) -> None:
    (folder / "wav").mkdir()
    for i in range(6):  # ü6.wav is missing
        soundfile.write(folder / "wav" / f"ü{i}.wav", np.full(16_000 * 12, 0.1), 16_000)
    (folder / "wav" / "ü5.wav").write_bytes(b"")


def test_checked_data_has_the_same_durations_batches_and_faults(tmp_path, manifests):
    with_audio(tmp_path)
    small, table = both(manifests)
    one, other = (SpeechDataset(samples, on_error="skip", max_duration_s=11.0) for samples in (small, table))
    assert 20 < len(one.samples) < 65
    assert list(other.samples) == list(one.samples)
    assert other.durations_s == one.durations_s
    assert all(type(seconds) is float for seconds in other.durations_s)
    assert list(map(str, other.skipped)) == list(map(str, one.skipped))
    assert other.report() == one.report()
    plans = [list(BatchSampler(durations_s=data.durations_s, batch_size=4, seed=5)) for data in (one, other)]
    assert plans[0] == plans[1]
    errors = []
    for samples in (small, table):
        with pytest.raises(DataError) as error:
            SpeechDataset(samples)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_workers_read_the_same_items_and_resume_in_the_middle(tmp_path, manifests):
    with_audio(tmp_path)
    small, table = both(manifests)
    data = [SpeechDataset(samples, on_error="skip") for samples in (small, table)]

    def ids(dataset: SpeechDataset, workers: int, start: int) -> list[list[str]]:
        sampler = BatchSampler(durations_s=dataset.durations_s, batch_size=5, seed=1)
        sampler.set_epoch(2)
        sampler.start(start)
        names = lambda items: [item.sample.id for item in items]  # noqa: E731
        return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=names, num_workers=workers))

    whole = ids(data[0], 0, 0)
    assert ids(data[1], 2, 0) == whole
    assert ids(data[1], 2, 4) == whole[4:]


def _source(table: SampleTable) -> str:
    return table[33].source


def test_a_worker_that_is_not_forked_opens_the_manifest_itself(manifests):
    _, table = both(manifests)
    assert len(pickle.dumps(table)) < 2_000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_source, (table,)) == table[33].source


def test_the_index_is_made_once_and_after_a_change(tmp_path, cache, manifests):
    path = manifests[0]
    before = list(open_manifests([path], large_bytes=0))
    about = cache.glob("*/about.json")
    (file,) = about
    made = file.stat().st_mtime_ns
    table = open_manifests([path], large_bytes=0)
    assert file.stat().st_mtime_ns == made
    assert isinstance(table.files[0].columns["begin"], np.memmap)
    write(path, [*some_lines(40), {"id": "new", "audio": "n.wav"}])
    assert [sample.id for sample in open_manifests([path], large_bytes=0)] == [*(s.id for s in before), "new"]
    assert len(list(cache.glob("*/about.json"))) == 1  # the old one is replaced
    (file.parent / "begin.npy").write_bytes(b"damaged")
    assert open_manifests([path], large_bytes=0)[40].id == "new"


def test_a_manifest_that_changes_while_it_is_used_is_refused(manifests):
    table = open_manifests(manifests[:1], large_bytes=0)
    write(manifests[0], some_lines(41))
    with pytest.raises(ManifestError, match="has changed since it was opened"):
        table[0]


def test_without_a_cache_folder_the_index_stays_in_memory(tmp_path, manifests, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    small, table = both(manifests)
    assert list(table) == small
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "is not JSON"),
        ({"id": "z", "audio": "a.wav", "duration_s": 0}, '"duration_s" is 0'),
        ({"id": "a2", "audio": "a.wav"}, "id 'a2' is already on line 4"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "m.jsonl", [*some_lines(4), line])
    errors = []
    for large_bytes in (0, 10**9):
        with pytest.raises(ManifestError) as error:
            open_manifests([path], large_bytes=large_bytes)
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"{path}:6: ")
    assert message in errors[0]


def test_bytes_that_are_no_text_name_the_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"id": "a", "audio": "a.wav"}\n{"id": "\xff"}\n')
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: is not UTF-8"):
        open_manifests([path], large_bytes=0)


def test_equal_hashes_of_different_ids_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_index, "hash", lambda name: 7, raising=False)
    path = write(tmp_path / "m.jsonl", some_lines(10))
    assert len(open_manifests([path], large_bytes=0)) == 10


def test_a_sample_keeps_its_stated_duration_unless_it_was_measured(tmp_path, manifests):
    small, table = both(manifests)
    measured = take(table, [1, 2], [1.1, 7.0])
    assert list(measured) == [replace(small[1], duration_s=1.1), replace(small[2], duration_s=7.0)]
