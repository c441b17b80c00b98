"""Audio at gs:// and hf://, as `test_s3` has it for s3://. An emulator and a small stand-in for the hub serve it."""

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from miniatures import encoded, shard

from ossicle import addresses
from ossicle.audio import read_audio
from ossicle.data.manifest import read_manifest
from ossicle.errors import AudioError, DataError

serving = pytest.importorskip("werkzeug.serving", reason="flask is not installed")
wrappers = pytest.importorskip("werkzeug.wrappers", reason="flask is not installed")


class Hub:
    """The parts of the hub's HTTP interface that its file system reads, for the dataset ``me/speech``."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, environ, start_response):
        request = wrappers.Request(environ)
        found = re.fullmatch(
            r"/(?:api/)?datasets/me/speech/?(tree/main|paths-info/main|resolve/main|)/?(.*)", request.path
        )
        kind, path = found.groups() if found else ("", "?")
        missing = wrappers.Response(
            "{}", status=404, headers={"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}
        )
        if kind == "resolve/main":
            answer = self._file(path, request) if path in self.files else missing
        elif kind == "tree/main":
            start = f"{path}/" if path else ""
            names = {start + name[len(start) :].split("/")[0] for name in self.files if name.startswith(start)}
            answer = _json([self._entry(name) for name in sorted(names)]) if names else missing
        elif kind:
            answer = _json([self._entry(name) for name in request.form.getlist("paths") if self._exists(name)])
        else:
            answer = missing if path else _json({"id": "me/speech", "sha": "0" * 40})
        return answer(environ, start_response)

    def _exists(self, name: str) -> bool:
        return any(one == name or one.startswith(f"{name}/") for one in self.files)

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files.get(name)
        kind = {"type": "directory"} if content is None else {"type": "file", "size": len(content)}
        return {"path": name, "oid": f"{hash(content) % 10**9:040d}", **kind}

    def _file(self, path: str, request):
        headers = {"ETag": '"x"', "X-Repo-Commit": "0" * 40}
        response = wrappers.Response(self.files[path], headers=headers)
        return response.make_conditional(request, accept_ranges=True, complete_length=len(self.files[path]))


def _json(content):
    return wrappers.Response(json.dumps(content), content_type="application/json")


@pytest.fixture
def hub(monkeypatch):
    """Return ``(put, URL)``: a function that writes an object, and the address of the folder."""
    hugging = pytest.importorskip("huggingface_hub")
    app = Hub()
    server = serving.make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    hugging.HfFileSystem.clear_instance_cache()

    def put(name: str, content: bytes) -> None:
        app.files[name] = content
        hugging.HfFileSystem.clear_instance_cache()

    yield put, "hf://datasets/me/speech"
    server.shutdown()
    thread.join()
    hugging.HfFileSystem.clear_instance_cache()


@pytest.fixture
def google(monkeypatch):
    """As ``hub``, for a bucket of Google Cloud Storage."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # read at import; the emulator has no gRPC
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="speech")
    server.start()
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    system = gcsfs.GCSFileSystem(token="anon")
    yield lambda name, content: system.pipe_file(f"speech/{name}", content), "gs://speech"
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture(params=["google", "hub"])
def service(request):
    addresses._size_of.cache_clear()
    return request.getfixturevalue(request.param)


def test_shards_and_objects_are_read(service, tmp_path, prepared):
    put, url = service
    audio = encoded(tmp_path, 1.0)
    put("tars/train-0.tar", shard(tmp_path / "train-0.tar", ("a.flac", audio), ("a.txt", "one word")).read_bytes())
    put("loose/a.flac", audio)
    prepared("webdataset", Path(f"{url}/tars"))
    (sample,) = read_manifest(tmp_path / "out" / "train.jsonl")
    assert sample.text == "one word"
    wanted = read_audio(tmp_path / "tone1.0.flac")
    for path in (sample.audio, Path(f"{url}/loose/a.flac")):
        assert np.array_equal(read_audio(path), wanted)


def test_another_content_is_another_version(service, tmp_path):
    put, url = service
    put("loose/a.flac", encoded(tmp_path, 1.0))
    version = addresses.version_of(Path(f"{url}/loose/a.flac"))
    put("loose/a.flac", encoded(tmp_path, 1.5))
    assert addresses.version_of(Path(f"{url}/loose/a.flac")) != version


def test_what_is_missing_is_named(service, tmp_path, prepared):
    put, url = service
    put("loose/a.flac", encoded(tmp_path, 1.0))
    with pytest.raises(AudioError) as error:
        read_audio(Path(f"{url}/loose/none.flac"))
    assert str(error.value) == f"{url}/loose/none.flac: there is no such file"
    with pytest.raises(DataError, match=f"{url}/none: .*check the address"):
        prepared("webdataset", Path(f"{url}/none"))
