import json
import multiprocessing
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ossicle.errors import CacheError
from ossicle.train import cache_store
from ossicle.train.cache_store import ABOUT, CacheStore


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].expand(-1, 3)


def test_what_was_put_in_comes_out_before_and_after_writing(tmp_path):
    store = CacheStore(tmp_path, {"of": "numbers"}, shard_rows=4)
    store.add([("a", rows(1, 2)), ("b", rows(3))])
    assert not list(tmp_path.glob("*.safetensors"))  # the 3 rows are still in memory
    assert torch.equal(store["a"], rows(1, 2))
    store.add([("c", rows(4, 5))])
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    store.add([("d", rows(6))])
    store.flush()
    again = CacheStore(tmp_path, {"of": "numbers"}, shard_rows=4)
    assert set(again.keys) == {"a", "b", "c", "d"}
    assert len(again) == 4
    assert "e" not in again
    for key, values in {"a": rows(1, 2), "b": rows(3), "c": rows(4, 5), "d": rows(6)}.items():
        assert torch.equal(again[key], values)


def test_a_key_is_kept_once(tmp_path):
    store = CacheStore(tmp_path, {}, shard_rows=100)
    store.add([("a", rows(1)), ("a", rows(2))])
    store.flush()
    store.add([("a", rows(3))])
    assert torch.equal(store["a"], rows(1))
    assert len(store) == 1


def test_size_counts_what_waits(tmp_path):
    store = CacheStore(tmp_path, {}, shard_rows=100)
    store.add([("a", torch.zeros(5, 3))])
    assert store.size_bytes == 5 * 3 * 4
    store.flush()
    assert store.size_bytes >= 5 * 3 * 4


def test_another_content_is_refused(tmp_path):
    CacheStore(tmp_path, {"llm": "x", "layers": [0, 1]}, shard_rows=1)
    CacheStore(tmp_path, {"llm": "x", "layers": [0, 1]}, shard_rows=9)
    with pytest.raises(CacheError, match=r"different model or setting \(layers, llm\); delete it"):
        CacheStore(tmp_path, {"llm": "y", "layers": [0]}, shard_rows=1)


def test_shards_without_a_description_are_refused(tmp_path):
    CacheStore(tmp_path, {"llm": "x"}, shard_rows=1).add([("a", rows(1))])
    (tmp_path / ABOUT).unlink()
    with pytest.raises(CacheError, match=r"different model or setting \(llm\)"):
        CacheStore(tmp_path, {"llm": "x"}, shard_rows=1)


def test_a_shard_counts_once_its_index_is_there(tmp_path):
    store = CacheStore(tmp_path, {}, shard_rows=1)
    store.add([("a", rows(1))])
    (index,) = (path for path in tmp_path.glob("*.json") if path.name != ABOUT)
    assert json.loads(index.read_text()) == {"a": 1}
    index.unlink()
    again = CacheStore(tmp_path, {}, shard_rows=1)
    assert "a" not in again
    again.add([("a", rows(2))])
    assert torch.equal(again["a"], rows(2))


@pytest.fixture
def filled(tmp_path) -> Path:
    """A folder with one shard of three tensors."""
    CacheStore(tmp_path, {}, shard_rows=1).add([("a", rows(1, 2)), ("b", rows(3)), ("c", rows(4))])
    return tmp_path


def files(folder: Path) -> tuple[Path, Path]:
    (index,) = (path for path in folder.glob("*.json") if path.name != ABOUT)
    return index, index.with_suffix(".safetensors")


@pytest.mark.parametrize(
    "content", ["", "{", '{"a": 2, "b": 1', "[]", "3", '{"a": "x"}', '{"a": 2}', "\\0", "[" * 10**5]
)
def test_damaged_index_names_the_fix(filled, content):
    index, shard = files(filled)
    index.write_text(content)
    with pytest.raises(CacheError) as caught:
        CacheStore(filled, {}, shard_rows=1)
    assert f"damaged; delete {index.stem}.* in this folder" in str(caught.value)
    index.unlink()
    shard.unlink()
    assert "a" not in CacheStore(filled, {}, shard_rows=1)  # the fix works


def test_index_with_another_number_of_rows_is_found(filled):
    index, _ = files(filled)
    index.write_text(index.read_text().replace('"a": 2', '"a": 1'))
    with pytest.raises(CacheError, match="damaged; delete"):
        CacheStore(filled, {}, shard_rows=1)["b"]


def test_every_flipped_bit_of_a_shard_is_found(filled):
    _, shard = files(filled)
    whole = shard.read_bytes()
    expected = {key: CacheStore(filled, {}, shard_rows=1)[key].clone() for key in "abc"}
    for at in range(0, len(whole)):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        shard.write_bytes(content)
        try:
            store = CacheStore(filled, {}, shard_rows=1)
            assert all(torch.equal(store[key], values) for key, values in expected.items())
        except CacheError as error:
            assert f"delete {shard.stem}.*" in str(error)


@pytest.mark.parametrize("keep", [0, 7, 100, -4])
def test_cut_shard_is_found(filled, keep):
    _, shard = files(filled)
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(CacheError, match="damaged; delete"):
        CacheStore(filled, {}, shard_rows=1)["c"]
    shard.unlink()
    with pytest.raises(CacheError, match="damaged; delete"):
        CacheStore(filled, {}, shard_rows=1)


def test_shards_that_were_exchanged_are_found(filled):
    _, first = files(filled)
    CacheStore(filled, {}, shard_rows=1).add([("d", rows(4, 5)), ("e", rows(6)), ("f", rows(7))])
    (second,) = (path for path in filled.glob("*.safetensors") if path != first)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(CacheError, match="damaged; delete"):
        CacheStore(filled, {}, shard_rows=1)["a"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3"])
def test_damaged_description_names_the_fix(filled, content):
    (filled / ABOUT).write_text(content)
    with pytest.raises(CacheError, match=r"about\.json: is damaged; delete the folder|different model or setting"):
        CacheStore(filled, {"llm": "x"}, shard_rows=1)


def test_shards_of_older_versions_without_checksums_are_read(filled):
    from safetensors.torch import load_file, save_file

    _, shard = files(filled)
    save_file(load_file(shard), shard)
    assert torch.equal(CacheStore(filled, {}, shard_rows=1)["b"], rows(3))


def test_checksums_are_those_of_the_bytes():
    values = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    assert cache_store._checksum(values) == zlib.crc32(bytes.fromhex("c03f00c0"))


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "x")]
)
def test_full_disk_is_named_and_leaves_nothing_behind(filled, monkeypatch, error):
    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error

    store = CacheStore(filled, {}, shard_rows=1)
    monkeypatch.setattr(cache_store, "save_file", fails)
    before = sorted(filled.iterdir())
    with pytest.raises(CacheError, match=r"the disk is full; free some space, or set another data\.cache_dir"):
        store.add([("d", rows(1))])
    assert sorted(filled.iterdir()) == before
    assert torch.equal(CacheStore(filled, {}, shard_rows=1)["a"], rows(1, 2))


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written"):
        CacheStore(tmp_path / "file" / "cache", {}, shard_rows=1)


def test_memory_before_a_flush_is_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_store, "SHARD_BYTES", 1000)
    store = CacheStore(tmp_path, {}, shard_rows=10**9)
    for number in range(20):
        store.add([(str(number), torch.zeros(1, 50))])  # 200 bytes
        assert store._new_bytes < 1000
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert store.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


def test_processes_find_each_others_tensors(tmp_path):
    one, other = (CacheStore(tmp_path, {}, shard_rows=1) for _ in range(2))
    one.add([("a", rows(1))])
    assert "a" not in other
    other.refresh(at_once=False)
    assert "a" not in other  # it has just looked
    other.refresh()
    assert torch.equal(other["a"], rows(1))
    assert other.size_bytes == one.size_bytes


def claim(folder: Path, number: int) -> None:
    for turn in range(20):
        store = CacheStore(folder / str(turn), {"llm": "x" * 5000}, shard_rows=1)
        store.add([(f"{number}-{turn}", torch.full((2, 3), float(turn))), ("shared", torch.zeros(1, 3))])


def test_processes_claim_one_folder_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=claim, args=(tmp_path, number)) for number in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    for turn in range(20):
        store = CacheStore(tmp_path / str(turn), {"llm": "x" * 5000}, shard_rows=1)
        assert {f"{number}-{turn}" for number in range(4)} < set(store.keys)
        assert all(torch.equal(store[f"{number}-{turn}"], torch.full((2, 3), float(turn))) for number in range(4))
