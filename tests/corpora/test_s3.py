"""Audio on an S3 server: objects, shards, tables and what happens when the service fails. The server is moto's."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from miniatures import encoded, shar, shard
from torch.utils.data import DataLoader

from ossicle import addresses
from ossicle.audio import read_audio
from ossicle.corpora.items import Options
from ossicle.corpora.prepare import prepare
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.errors import AudioError, DataError, OssicleError

s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.moto_server.werkzeug_app", reason="moto and flask are not installed")
serving = pytest.importorskip("werkzeug.serving", reason="flask is not installed")


class Breaking:
    """The server, which breaks off its answers after 100 bytes: ``broken[NAME]`` times for the object NAME."""

    def __init__(self) -> None:
        self.app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self.broken: dict[str, int] = {}

    def __call__(self, environ, start_response):
        content, name = self.app(environ, start_response), environ["PATH_INFO"].rpartition("/")[2]
        if environ["REQUEST_METHOD"] == "GET" and self.broken.get(name, 0):
            self.broken[name] -= 1
            return [b"".join(content)[:100]]
        return content


@pytest.fixture(scope="module")
def server():
    app = Breaking()
    made = serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield app, f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket of the server, with credentials in the environment."""
    _, url = server
    nowhere = str(tmp_path / "none")
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    addresses._size_of.cache_clear()
    system = s3fs.S3FileSystem()
    system.mkdir("speech")
    yield system
    system.rm("speech", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def upload(system, folder: Path, name: str) -> Path:
    """Copy the files of a folder, and return its URL as a path."""
    for path in folder.iterdir():
        system.pipe_file(f"speech/{name}/{path.name}", path.read_bytes())
    return Path(f"s3://speech/{name}")


def tars(tmp_path: Path) -> Path:
    for number, seconds in (("000000", 1.0), ("000001", 2.0)):
        audio = encoded(tmp_path, seconds)
        shard(tmp_path / "tars" / f"train-{number}.tar", ("a.flac", audio), ("a.txt", f"lasts {seconds}"))
    return tmp_path / "tars"


def same_sound(sample, tmp_path: Path) -> bool:
    return np.array_equal(read_audio(sample.audio), read_audio(tmp_path / f"tone{sample.duration_s}.flac"))


def test_objects_of_a_manifest(bucket, tmp_path):
    bucket.pipe_file("speech/a.flac", encoded(tmp_path, 1.0))
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "audio": "s3://speech/a.flac", "duration_s": 1.0}))
    (sample,) = read_manifest(tmp_path / "m.jsonl")
    assert same_sound(sample, tmp_path)
    version = addresses.version_of(sample.audio)
    bucket.pipe_file("speech/a.flac", encoded(tmp_path, 1.5))
    assert addresses.version_of(sample.audio) != version


def test_shards_are_prepared_and_read_by_workers(bucket, tmp_path, prepared):
    folder = tars(tmp_path)
    (folder / "._train-000000.tar").write_bytes(b"hidden, as macOS writes them on other disks")
    lines, _ = prepared("webdataset", upload(bucket, folder, "tars"))
    assert [(line["text"], line["duration_s"]) for line in lines["train"]] == [("lasts 1.0", 1.0), ("lasts 2.0", 2.0)]
    dataset = SpeechDataset(read_manifest(tmp_path / "out" / "train.jsonl"))
    assert all(same_sound(sample, tmp_path) for sample in dataset.samples)
    loaded = DataLoader(dataset, batch_sampler=[[1], [0]], collate_fn=list, num_workers=1)  # after a read: a fork
    assert [len(item[0].waveform) for item in loaded] == [32_000, 16_000]


def test_a_shar_and_a_table(bucket, tmp_path):
    shar(tmp_path / "shar", tmp_path, "000000", ("x-0", 1.0, "one"), ("x-1", 2.0, "two"))
    prepare("lhotse", upload(bucket, tmp_path / "shar", "shar"), tmp_path / "cuts", show=False)
    samples = read_manifest(tmp_path / "cuts" / "cuts.jsonl")
    assert [sample.text for sample in samples] == ["one", "two"]
    assert all(same_sound(sample, tmp_path) for sample in samples)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "table").mkdir()
    table = pa.table({"audio": [{"bytes": encoded(tmp_path, 1.5), "path": None}], "text": ["three"]})
    parquet.write_table(table, tmp_path / "table" / "dev-0.parquet")
    options = Options(language="en")
    prepare("parquet", upload(bucket, tmp_path / "table", "table"), tmp_path / "rows", options, show=False)
    (row,) = read_manifest(tmp_path / "rows" / "dev.jsonl")
    assert row.text == "three"
    assert same_sound(row, tmp_path)


def test_a_read_that_breaks_off_is_repeated(bucket, server, tmp_path, prepared):
    source = upload(bucket, tars(tmp_path), "tars")
    broken = server[0].broken
    broken |= {"train-000000.tar": 1, "train-000001.tar": 2}
    lines, report = prepared("webdataset", source)
    assert (len(lines["train"]), report.dropped) == (2, {})
    broken |= {"train-000000.tar": 2}
    assert len(read_audio(read_manifest(tmp_path / "out" / "train.jsonl")[0].audio)) == 16_000
    assert broken == {"train-000000.tar": 0, "train-000001.tar": 0}


def test_a_service_that_fails_midway_leaves_nothing_out(bucket, server, tmp_path):
    source = upload(bucket, tars(tmp_path), "tars")
    server[0].broken["train-000001.tar"] = 10**6
    with pytest.raises(DataError, match=r"s3://speech/tars/train-000001.tar.*: cannot be read .* check the network"):
        prepare("webdataset", source, tmp_path / "out", show=False)
    server[0].broken.clear()
    report = prepare("webdataset", source, tmp_path / "out", show=False)
    assert (report.manifests["train"].lines, report.dropped) == (2, {})


@pytest.mark.parametrize("path", ["s3://speech/none.flac", "s3://nobucket/a.flac", "s3://speech/t.tar#0+9.flac"])
def test_a_missing_object_or_bucket(bucket, path):
    with pytest.raises(AudioError) as error:
        read_audio(Path(path))
    assert str(error.value) == f"{path}: there is no such file"
    with pytest.raises(FileNotFoundError) as absent:
        addresses.version_of(Path(path))
    assert absent.value.filename == path.partition("#")[0]
    assert addresses.is_present(path) == ("#" not in path)


@pytest.mark.parametrize("source", ["s3://speech/none", "s3://nobucket/x"])
def test_a_missing_folder(bucket, refused, source, tmp_path):
    with pytest.raises(DataError, match=rf"{source}: cannot be listed \(.*\); check the address"):
        prepare("webdataset", Path(source), tmp_path / "out", show=False)


@pytest.mark.parametrize("fault", ["no credentials", "no server"])
def test_a_service_that_fails_stops_the_work(bucket, tmp_path, monkeypatch, fault):
    """It must not look as if the audio were bad: such utterances would be left out."""
    source = upload(bucket, tars(tmp_path), "tars")
    report = prepare("webdataset", source, tmp_path / "good", show=False)
    assert report.manifests
    with monkeypatch.context() as patch:
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        if fault == "no server":
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port "discard"
        else:
            patch.delenv("AWS_ACCESS_KEY_ID")
            patch.delenv("AWS_SECRET_ACCESS_KEY")
        s3fs.S3FileSystem.clear_instance_cache()
        addresses._size_of.cache_clear()
        audio = read_manifest(tmp_path / "good" / "train.jsonl")[0].audio
        for attempt in (
            lambda: read_audio(audio),
            lambda: SpeechDataset(read_manifest(tmp_path / "good" / "train.jsonl")),
            lambda: addresses.version_of(audio),
            lambda: prepare("webdataset", source, tmp_path / "out", show=False),
            lambda: prepare("webdataset", source / "train-000000.tar", tmp_path / "out", show=False),
        ):
            with pytest.raises(OssicleError) as error:
                attempt()
            assert not isinstance(error.value, AudioError)
            assert str(error.value).startswith("s3://speech/tars")
            assert "check the network, the endpoint and your credentials" in str(error.value)
    s3fs.S3FileSystem.clear_instance_cache()
    assert prepare("webdataset", source, tmp_path / "out", show=False).manifests == report.manifests
