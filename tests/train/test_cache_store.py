import json

import pytest
import torch

from ossicle.errors import CacheError
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
