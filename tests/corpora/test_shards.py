"""Audio in tar shards and at URLs: WebDataset, Lhotse Shar, parquet, local and by fsspec."""

import gzip
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from miniatures import encoded, shar, shard, tone
from torch.utils.data import DataLoader

from ossicle import addresses
from ossicle.addresses import is_address, local_copy, member_of, read_bytes, version_of
from ossicle.audio import audio_duration_s, read_audio
from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import AudioError, DataError, MissingPackageError


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Two shards of ``train`` and one of ``dev``, with what shards contain besides plain utterances."""
    folder, make = tmp_path / "web", lambda seconds, suffix=".flac": encoded(tmp_path, seconds, suffix)
    shard(
        folder / "train-000000.tar",
        ("a.flac", make(1.0)),
        ("a.txt", "one\n"),
        ("a.json", json.dumps({"speaker": "anna", "language": "en", "duration": 99})),
        ("b.json", json.dumps({"text": "two", "translation": "zwei", "target_lang": "de"})),
        ("b.wav", make(2.0, ".wav")),
        ("c.txt", "no audio"),
    )
    shard(
        folder / "train-000001.tar",
        ("../../evil.sh", "x"),
        ("/etc/d.flac", make(1.5)),
        ("/etc/d.txt", "three"),
        ("e.flac", make(1.0)),
        ("e.json", "[1]"),
        ("f.flac", "no sound" * 50),
        ("f.txt", "noise"),
        ("g.pickle", b"cos\nsystem\n(S'touch evil'\ntR."),
    )
    shard(folder / "dev-000000.tar", ("x.y/h.1.flac", make(0.5)), ("x.y/h.txt", "four"))
    return folder


def test_each_utterance_of_a_shard_is_a_line_with_the_address_of_its_audio(web, tmp_path, prepared):
    lines, report = prepared("webdataset", web, language=None)
    assert [(line["id"], line["text"], line["duration_s"]) for line in lines["train"]] == [
        ("train-000000/a", "one", 1.0),
        ("train-000000/b", "two", 2.0),
        ("train-000001//etc/d", "three", 1.5),
    ]
    assert (lines["train"][0]["speaker"], lines["train"][0]["language"]) == ("anna", "en")
    (translated,) = lines["train.st-de"]
    assert (translated["answer"], translated["id"]) == ("zwei", "train-000000/b-de")
    assert [line["id"] for line in lines["dev"]] == ["dev-000000/x.y/h"]
    assert {name: reason.count for name, reason in report.dropped.items()} == {
        "no audio member": 3,
        "invalid row": 1,
        "audio cannot be used": 1,
    }
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    assert not [name for name in files if "flac" in name or "evil" in name]  # nothing is unpacked
    for sample in read_manifest(tmp_path / "out" / "train.jsonl"):
        seconds = sample.duration_s
        expected = read_audio(tmp_path / f"tone{seconds}{'.wav' if seconds == 2.0 else '.flac'}")
        np.testing.assert_array_equal(read_audio(sample.audio), expected)


def test_training_data_in_shards_is_shuffled_and_read_by_workers(web, tmp_path, prepared):
    prepared("webdataset", web, splits=("train",))
    dataset = SpeechDataset(read_manifest(tmp_path / "out" / "train.jsonl"))
    order = [2, 0, 1]
    loaded = list(DataLoader(dataset, batch_sampler=[[i] for i in order], collate_fn=list, num_workers=2))
    assert [item[0].sample.id for item in loaded] == [dataset.samples[i].id for i in order]
    assert [len(item[0].waveform) for item in loaded] == [24_000, 16_000, 32_000]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_shards_at_a_url_give_the_same_lines(web, tmp_path, prepared, scheme):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in web.glob("*.tar"):
        memory.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    url = Path("memory://bucket") if scheme == "memory" else Path(f"file://{web}")
    lines, _ = prepared("webdataset", url)
    assert [line["id"] for line in lines["train"]] == ["train-000000/a", "train-000000/b", "train-000001//etc/d"]
    assert all(line["audio"].startswith(f"{scheme}://") for line in lines["train"])
    samples = read_manifest(tmp_path / "out" / "train.jsonl")
    dataset = SpeechDataset(samples)
    np.testing.assert_array_equal(dataset[1].waveform, read_audio(tmp_path / "tone2.0.wav"))
    write_manifest(tmp_path / "again" / "m.jsonl", samples)
    assert [one.audio for one in read_manifest(tmp_path / "again" / "m.jsonl")] == [one.audio for one in samples]
    assert version_of(samples[0].audio) != version_of(samples[1].audio)


def test_whole_files_at_a_url(tmp_path):
    fsspec.filesystem("memory").pipe_file("/clips/a.flac", encoded(tmp_path, 1.0))
    line = {"id": "a", "audio": "memory://clips/a.flac", "duration_s": 1.0}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"id": "b", "audio": "a.flac"}))
    remote, local = read_manifest(tmp_path / "m.jsonl")
    assert (addresses.url_of(remote.audio), local.audio) == ("memory://clips/a.flac", tmp_path / "a.flac")
    assert len(SpeechDataset([remote])[0].waveform) == 16_000


def test_a_fault_names_the_address(web, tmp_path, prepared):
    prepared("webdataset", web, splits=("train",))
    first = read_manifest(tmp_path / "out" / "train.jsonl")[0]
    whole = (web / "train-000000.tar").read_bytes()
    place = member_of(str(first.audio))
    assert place is not None
    damaged = bytearray(whole)
    damaged[place.offset : place.offset + 200] = b"x" * 200
    (web / "train-000000.tar").write_bytes(damaged)
    with pytest.raises(AudioError) as error:
        read_audio(first.audio)
    assert str(error.value).startswith(f"{first.audio}: is not an audio file")
    assert "/ossicle-" not in str(error.value)
    (web / "train-000000.tar").write_bytes(whole[: place.offset + 10])
    addresses._size_of.cache_clear()
    with pytest.raises(DataError, match="the shard ends before it"):
        SpeechDataset([first])  # before training
    (web / "train-000000.tar").unlink()
    with pytest.raises(AudioError, match="there is no such file"):
        audio_duration_s(first.audio)


def test_an_object_that_may_not_be_read_is_a_fault_of_its_own_and_a_service_that_fails_is_not(monkeypatch):
    def cannot(error: Exception):
        def cat_file(*_: object, **__: object) -> bytes:
            raise error

        return cat_file

    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "cat_file", cannot(PermissionError("Forbidden")))
    with pytest.raises(AudioError, match=r"memory://b/a.flac: cannot be read \(PermissionError: .*access is denied"):
        read_bytes(Path("memory://b/a.flac"))
    monkeypatch.setattr(memory, "cat_file", cannot(TimeoutError("slow down")))
    with pytest.raises(
        DataError, match=r"memory://b/a.flac: cannot be read \(TimeoutError: slow down\); check"
    ) as error:
        read_bytes(Path("memory://b/a.flac"))
    assert not isinstance(error.value, AudioError)


def test_damaged_and_compressed_shards_are_refused(tmp_path, web, refused):
    content = (web / "dev-000000.tar").read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/train-0.tar").write_bytes(gzip.compress(content))
    assert "unpack .tar.gz to .tar" in refused("webdataset", tmp_path / "bad")
    (tmp_path / "bad/train-0.tar").write_bytes(b"not a tar file" * 100)
    assert "is damaged or not a plain tar file" in refused("webdataset", tmp_path / "bad")
    assert "contains no .tar file" in refused("webdataset", tmp_path)
    assert "only lhotse, parquet, webdataset are read from a URL" in refused("mls", Path("s3://bucket/mls"))


def test_links_and_sparse_files_are_left_out(tmp_path, prepared):
    path = shard(tmp_path / "in" / "train.tar", ("a.flac", encoded(tmp_path, 1.0)), ("a.txt", "one"))
    with tarfile.open(path, "a") as tar:
        for kind, name in ((tarfile.SYMTYPE, "b.flac"), (tarfile.LNKTYPE, "c.flac"), (tarfile.FIFOTYPE, "d.flac")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    lines, report = prepared("webdataset", path)
    assert [line["id"] for line in lines["train"]] == ["train/a"]
    assert not report.dropped


@pytest.mark.parametrize("remote", [False, True])
def test_lhotse_shar(tmp_path, prepared, remote):
    folder = tmp_path / "shar"
    shar(folder, tmp_path, "000000", ("x.1-0", 1.0, "one"), ("x.1-1", 2.0, "two"))
    shar(folder, tmp_path, "000001", ("x.2-0", 1.5, "three"))
    source = folder
    if remote:
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        for path in folder.iterdir():
            memory.pipe_file(f"/s/{path.name}", path.read_bytes())
        source = Path("memory://s")
    lines, _ = prepared("lhotse", source)
    assert [(line["id"], line["text"], line["duration_s"]) for line in lines["cuts"]] == [
        ("x.1-0-s", "one", 1.0),
        ("x.1-1-s", "two", 2.0),
        ("x.2-0-s", "three", 1.5),
    ]
    for sample in read_manifest(tmp_path / "out" / "cuts.jsonl"):
        waveform = read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s)
        np.testing.assert_array_equal(waveform, read_audio(tmp_path / f"tone{sample.duration_s}.flac"))


def test_cuts_of_a_shar_without_their_audio_are_left_out(tmp_path, prepared):
    folder = tmp_path / "shar"
    shar(folder, tmp_path, "0", ("a", 1.0, "one"))
    shar(folder, tmp_path, "1", ("b", 1.0, "two"), audio=False)
    shar(folder, tmp_path, "2", ("c", 1.0, "three"), ("d", 1.0, "four"))
    shard(folder / "recording.2.tar", ("c.nodata", b""), ("c.nometa", b""), ("d.flac", encoded(tmp_path, 1.0)))
    lines, report = prepared("lhotse", folder)
    assert [line["id"] for line in lines["cuts"]] == ["a-s", "d-s"]
    assert report.dropped["invalid row"].count == 2
    text = (tmp_path / "out" / "dropped.jsonl").read_text()
    assert "no recording.*.tar with its number is beside it" in text
    assert "c.nodata" in text


def test_parquet_at_a_url_is_streamed(tmp_path, prepared):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sounds = [{"bytes": encoded(tmp_path, s), "path": None} for s in (1.0, 2.0)]
    parquet.write_table(pa.table({"audio": sounds, "text": ["one", "two"]}), tmp_path / "t.parquet")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe_file("/p/train-0000.parquet", (tmp_path / "t.parquet").read_bytes())
    lines, _ = prepared("parquet", Path("memory://p"), language="en")
    assert [(line["text"], line["duration_s"]) for line in lines["train"]] == [("one", 1.0), ("two", 2.0)]


def test_ordinary_paths_are_no_addresses(tmp_path):
    for path in ("a.wav", "/a/b#1.wav", "C:/x.wav", "a#12+3", "https://x.org/a.wav", "a:/b.wav"):
        assert not is_address(path), path
    odd = tone(tmp_path / "take#2.wav")
    assert len(SpeechDataset([Sample(id="a", audio=odd)])[0].waveform) == 16_000


def test_a_missing_package_is_named(monkeypatch):
    def no_package(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", no_package)
    with pytest.raises(MissingPackageError, match="pip install s3fs"):
        read_bytes(Path("s3://bucket/a.flac"))


def test_the_copy_of_a_member_is_removed(tmp_path):
    path = shard(tmp_path / "t.tar", ("a.flac", encoded(tmp_path, 1.0)))
    with tarfile.open(path) as tar:
        member = tar.getmembers()[0]
    address = addresses.address_of(path, member.offset_data, member.size, ".flac")
    with local_copy(address) as copy:
        assert soundfile.info(copy).frames == 16_000
    assert not copy.exists()
