import json
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.batch import Sample
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import parse_line, read_manifest, write_manifest
from ossicle.data.words import words_of
from ossicle.errors import ManifestError, OssicleError

GOOD = {"id": "a", "audio": "a.wav"}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def test_stage_1_and_stage_2_lines(tmp_path):
    path = write_lines(
        tmp_path / "m.jsonl",
        {**GOOD, "text": None, "language": "en", "speaker": None, "gender": None, "duration_s": 2, "age": "50-70"},
        "",
        {
            "id": "b",
            "audio": "/far/b.opus",
            "start_s": 1,
            "end_s": 2.5,
            "task": "st",
            "instruction": "translate",
            "answers": ["das auto", "der wagen"],
            "target_language": "de",
        },
        {"id": "c", "audio": "c.wav", "instruction": "repeat", "answer": "grün"},
    )
    first, second, third = read_manifest(path)
    assert first == Sample(
        id="a",
        audio=tmp_path / "a.wav",
        language="en",
        duration_s=2.0,
        extra={"gender": None, "age": "50-70"},
        source=f"{path}:1",
    )
    assert (second.audio, second.start_s, second.end_s) == (Path("/far/b.opus"), 1.0, 2.5)
    assert second.answers == ("das auto", "der wagen")
    assert second.source == f"{path}:3"
    assert third.answers == ("grün",)


def test_byte_order_mark_windows_line_ends_and_odd_separators(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        '\ufeff{"id": "a", "audio": "a.wav", "text": "x\u2028y"}\r\n\r\n{"id": "b", "audio": "b.wav"}'.encode()
    )
    assert [(sample.id, sample.text) for sample in read_manifest(path)] == [("a", "x\u2028y"), ("b", None)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({"audio": "a.wav"}, '"id" is missing; every line needs it as a string'),
        ({"id": "b"}, '"audio" is missing'),
        ({"id": 7, "audio": "a.wav"}, '"id" is 7; every line needs it as a string'),
        ({"id": "b", "audio": ""}, '"audio" is ""'),
        ({"id": "b", "audio": "a", "text": 3}, '"text" is 3; write a string, or null'),
        ({"id": "b", "audio": "a", "speaker": ["x"]}, '"speaker" is ["x"]'),
        ({"id": "b", "audio": "a", "duration_s": "3"}, '"duration_s" is "3"; write seconds'),
        ({"id": "b", "audio": "a", "duration_s": True}, '"duration_s" is true'),
        ({"id": "b", "audio": "a", "duration_s": 0}, '"duration_s" is 0'),
        ({"id": "b", "audio": "a", "duration_s": float("nan")}, '"duration_s" is NaN'),
        ({"id": "b", "audio": "a", "start_s": -1}, '"start_s" is -1'),
        ({"id": "b", "audio": "a", "start_s": 2, "end_s": 2}, '"end_s" (2.0) is not after "start_s" (2.0)'),
        ({"id": "b", "audio": "a", "instruction": "repeat"}, 'has an "instruction" but no answer'),
        ({"id": "b", "audio": "a", "instruction": "repeat", "answers": []}, 'has an "instruction" but no answer'),
        ({"id": "b", "audio": "a", "answer": " "}, '"answer" is " "; write a non-empty string'),
        ({"id": "b", "audio": "a", "answers": "x"}, '"answers" is "x"'),
        ({"id": "b", "audio": "a", "answers": ["x", 1]}, '"answers" is ["x", 1]'),
        ({"id": "b", "audio": "a", "answer": "x", "answers": ["x"]}, 'has both "answer" and "answers"'),
        ({"id": "a", "audio": "a.wav"}, "id 'a' is already on line 1"),
    ],
)
def test_error_names_file_line_and_fix(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", GOOD, "", line)
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert message in str(error.value)


def test_missing_and_foreign_manifest(tmp_path):
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "m.jsonl").write_bytes(b'{"id": "\xff\xfe"}')
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(tmp_path / "m.jsonl")


def test_round_trip_keeps_every_field(tmp_path):
    samples = [
        Sample(
            id="a", audio=tmp_path / "wav" / "ä.wav", text="größe", duration_s=1.5, extra={"age": 6, "x": {"y": [1]}}
        ),
        Sample(id="b", audio=Path("/far/b.wav"), task="qa", instruction="who", answers=("anna", "she"), end_s=2.0),
        Sample(id="c", audio=tmp_path / "c.wav", answers=("one",), start_s=0.5, target_language="de"),
    ]
    path = tmp_path / "m.jsonl"
    write_manifest(path, samples)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["audio"] for record in records] == ["wav/ä.wav", "/far/b.wav", "c.wav"]
    assert records[0] == {
        "id": "a",
        "audio": "wav/ä.wav",
        "text": "größe",
        "duration_s": 1.5,
        "age": 6,
        "x": {"y": [1]},
    }
    back = read_manifest(path)
    assert [vars(sample) | {"source": ""} for sample in back] == [vars(sample) | {"source": ""} for sample in samples]


def test_relative_audio_of_a_manifest_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_manifest("data/m.jsonl", [Sample(id="a", audio=Path("data/a.wav")), Sample(id="b", audio=Path("b.wav"))])
    assert [sample.audio for sample in read_manifest("data/m.jsonl")] == [Path("data/a.wav"), tmp_path / "b.wav"]


def test_failed_write_leaves_the_old_manifest(tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Sample(id="a", audio=tmp_path / "a.wav")])
    for extra in ({"x": object()}, {"x": float("nan")}, {"text": "clash"}):
        with pytest.raises(ManifestError, match="sample 'b'"):
            write_manifest(path, [Sample(id="b", audio=tmp_path / "b.wav", extra=extra)])
    assert [sample.id for sample in read_manifest(path)] == ["a"]
    assert list(tmp_path.iterdir()) == [path]


HALF = "\\ud83d"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f'{{"id": "x{HALF}", "audio": "a.wav"}}', r"holds half a character (\ud83d without its pair)"),
        (f'{{"id": "b", "audio": "a.wav", "text": "so {HALF} sad"}}', "holds half a character"),
        (f'{{"id": "b", "audio": "a.wav", "answer": "{HALF}"}}', "holds half a character"),
        (f'{{"id": "b", "audio": "a.wav", "note": [{{"{HALF}": 1}}]}}', "holds half a character"),
        (f'{{"id": "b", "audio": "{HALF}.wav"}}', "holds half a character"),
        ({"id": "b", "audio": "a\0.wav"}, '"audio" is "a\\u0000.wav"'),
        ({"id": "b", "audio": "x" * 5000}, '"audio" is "xxx'),
        ({"id": "b", "audio": "x/" * 2500}, '"audio" is "x/x'),
        ({"id": "b" * 5000, "audio": "a"}, '"id" has 5000 characters'),
        ({"id": "b", "audio": "a", "duration_s": 10**400}, '"duration_s" is 1000'),
        ({"id": "b", "audio": "a", "end_s": 1e300}, '"end_s" is 1e+300'),
        ('{"id": "b", "audio": "a", "duration_s": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"id": "b", "audio": "a", "x": ' + "[" * 100 + "]" * 100 + "}", "has values nested deeper than 50"),
        ('{"id": "b", "audio": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "has values nested deeper than 50"),
        ({"id": "b", "audio": "a", "text": {"a": ["x" * 9999]}}, '"text" is {"a": ["xxx'),
    ],
)
def test_odd_values_give_a_short_message(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", GOOD, line)
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_whole_emoji_and_long_word_lists_are_valid(tmp_path):
    words = [["w", i, i + 1] for i in range(500)]
    line = json.dumps({**GOOD, "text": "😀", "words": words})
    assert "\\ud83d" in line  # json escapes it as a pair
    (sample,) = read_manifest(write_lines(tmp_path / "m.jsonl", line))
    assert sample.text == "😀"
    assert len(words_of(sample)) == 500


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna")
    (sample,) = read_manifest(write_lines(tmp_path / "m.jsonl", {"id": "a", "audio": "~/a.wav"}))
    assert sample.audio == Path("/home/anna/a.wav")


@pytest.mark.parametrize(
    ("name", "written", "hint"),
    [
        ("a.wav", "https://example.org/a.wav", "it is an address; download it"),
        ("wavs/a.wav", "wavs\\a.wav", "write / instead of"),
        ("caf\u00e9.wav", "cafe\u0301.wav", "whose name has the Unicode form NFC"),
        ("cafe\u0301.wav", "caf\u00e9.wav", "whose name has the Unicode form NFD"),
        ("a.wav", "b.wav", "there is no such file"),
    ],
)
def test_path_that_is_almost_right(tmp_path, name, written, hint):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    path = write_lines(tmp_path / "m.jsonl", {"id": "a", "audio": written, "duration_s": 1})
    with pytest.raises(OssicleError, match="there is no such file") as error:
        SpeechDataset(read_manifest(path))
    assert hint in str(error.value)


@pytest.mark.parametrize("path", ["a\0.jsonl", "x" * 5000, "\ud800.jsonl"])
def test_path_of_a_manifest_that_no_file_can_have(path):
    with pytest.raises(ManifestError) as error:
        read_manifest(path)
    assert len(str(error.value)) < 250


PIECES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.sampled_from(["", "\ud83d", "a\0b", "x" * 6000, "../..", "😀", "\u2028"]),
)
VALUES = st.recursive(
    PIECES, lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(max_size=5), of, max_size=3)
)
FIELDS = [*GOOD, "text", "language", "speaker", "task", "instruction", "answer", "answers", "target_language"]
FIELDS += ["duration_s", "start_s", "end_s", "words", "other"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8), st.integers(0, 2**32))
def test_any_line_is_a_sample_or_a_manifest_error(changes, seed):
    line = json.dumps({**GOOD, "text": "x", "duration_s": 1, **changes})
    draw = random.Random(seed)
    at = draw.randrange(len(line))
    for text in (line, line[:at], line[:at] + draw.choice('{}[]",:\\\0e9') + line[at + 1 :]):
        try:
            sample = parse_line(text, Path("folder"), "m.jsonl:1")
            pickle.dumps(sample)
            str(sample.audio).encode()
            words_of(sample)
            SpeechDataset([sample], on_error="skip")
        except OssicleError as error:
            assert "m.jsonl:1" in str(error)
            assert len(str(error)) < 1300
