import json
import stat
from pathlib import Path

import pytest

from ossicle.files import atomic, atomic_folder, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic(path) as partial:
        partial.write_text("new")
        assert partial.suffix == ".txt" and partial.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_permissions_follow_the_umask(tmp_path):
    path, plain = tmp_path / "a.txt", tmp_path / "b.txt"
    plain.write_text("plain")
    with atomic(path) as partial:
        partial.touch(mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "für\n")
    write_json(tmp_path / "a.json", {"name": "für", "value": 1.5})
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "für\n"
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "für" in text and text.endswith("}\n") and json.loads(text) == {"name": "für", "value": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["value"] == 1.5


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "runs" / "step-1"
    for content in ("one", "two"):
        with atomic_folder(folder) as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / "a.txt").write_text(content)
            (partial / f"{content}.txt").touch()
    assert (folder / "deep" / "a.txt").read_text() == "two"
    assert names(folder) == ["deep", "two.txt"]
    assert names(tmp_path / "runs") == ["step-1"]


def test_an_error_leaves_the_old_folder_alone(tmp_path):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(folder) as partial:
        (partial / "a.txt").write_text("half")
        raise RuntimeError
    assert (folder / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["step-1"]


def test_what_an_interrupted_call_left_is_deleted(tmp_path):
    for left in (".step-1.partial", ".step-1.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "left.txt").touch()
    with atomic_folder(tmp_path / "step-1") as partial:
        (partial / "a.txt").touch()
    assert names(tmp_path) == ["step-1"]
    assert names(tmp_path / "step-1") == ["a.txt"]


def test_a_folder_in_the_place_of_a_file_is_named_before_the_work(tmp_path):
    worked = []
    with pytest.raises(IsADirectoryError) as caught, atomic(tmp_path) as partial:
        worked.append(partial)
    assert (caught.value.filename, worked) == (str(tmp_path), [])
