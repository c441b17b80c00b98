import json
from pathlib import Path

import pytest

from ossicle.errors import OssicleError
from ossicle.listen.answers import Answer
from ossicle.listen.long import Segment
from ossicle.listen.output import Output

FILES = [Path("a/one.wav"), Path("a/two.wav"), Path("b/one.wav")]


def answer(file, text="hello", **fields):
    return Answer(file, (Segment(0.0, 1.5, text),), 2.0, **fields)


def written(files, form, out, answers, **options):
    with Output(files, form, out, **options) as output:
        for given in answers:
            output.write(given)
    return output


@pytest.mark.parametrize("form", ["text", "json", "tsv"])
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_batch_continues_after_whole_lines(tmp_path, form, timestamps):
    out = tmp_path / "deep" / "answers"
    all_at_once = tmp_path / "whole"
    given = [answer(file, f"text {n}") for n, file in enumerate(FILES)]
    written(FILES, form, all_at_once, given, timestamps=timestamps)
    written(FILES, form, out, given[:2], timestamps=timestamps)
    with out.open("a") as file:
        file.write(f"{FILES[2]}")  # an interruption in the middle of a line
    missing = Output(FILES, form, out, timestamps=timestamps).missing
    assert FILES[2] in missing and FILES[0] not in missing
    written(FILES, form, out, [a for a in given if a.file in missing], timestamps=timestamps)
    assert out.read_text() == all_at_once.read_text()
    assert Output(FILES[:3], form, out, timestamps=timestamps).missing in ([], FILES[2:])


def test_errors_are_tried_again(tmp_path):
    out = tmp_path / "answers.json"
    written(FILES, "json", out, [answer(FILES[0]), Answer(FILES[1], error="cannot be read")])
    assert json.loads(out.read_text().splitlines()[1]) == {"file": "a/two.wav", "error": "cannot be read"}
    assert Output(FILES, "json", out).missing == FILES[1:]


def test_documents_keep_the_folders_and_never_collide(tmp_path):
    files = [*FILES, Path("b/one.mp3")]
    written(files, "srt", tmp_path / "out", [answer(file) for file in files[:3]])
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.srt"))
    assert found == ["a/one.srt", "a/two.srt", "b/one.wav.srt"]
    assert (tmp_path / "out/a/one.srt").read_text() == "1\n00:00:00,000 --> 00:00:01,500\nhello\n"
    assert Output(files, "srt", tmp_path / "out").missing == files[3:]


def test_one_recording_is_one_file(tmp_path):
    for text in ("first", "second"):
        written(FILES[:1], "vtt", tmp_path / "talk.vtt", [answer(FILES[0], text)])
        assert (tmp_path / "talk.vtt").read_text().splitlines()[-1] == text
    assert [path.name for path in tmp_path.iterdir()] == ["talk.vtt"]


def test_answers_of_another_model_are_not_mixed(tmp_path):
    out = tmp_path / "answers.tsv"
    written(FILES, "tsv", out, [answer(FILES[0])], settings={"model": "ears", "question": "who?"})
    with pytest.raises(OssicleError, match=r"holds answers with another model and question; choose another --out"):
        Output(FILES, "tsv", out, settings={"model": "other", "question": "what?"})
    again = Output(FILES, "tsv", out, settings={"model": "other"}, overwrite=True)
    assert again.missing == FILES and not out.exists()
    out.write_text("notes of mine\n")
    (tmp_path / "answers.tsv.meta.json").unlink()
    with pytest.raises(OssicleError, match=r"exists, and no answers\.tsv\.meta\.json says what wrote it"):
        Output(FILES, "tsv", out)
    assert out.read_text() == "notes of mine\n"


def test_places_that_cannot_hold_the_answers(tmp_path):
    with pytest.raises(OssicleError, match="give a folder for them with --out FOLDER"):
        Output(FILES, "srt")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OssicleError, match="is a file; give a folder"):
        Output(FILES, "srt", tmp_path / "file")


def test_standard_output(capsys):
    written(FILES[:1], "text", None, [answer(FILES[0])])
    written(FILES[:1], "text", None, [answer(FILES[0])], timestamps=True)
    written(FILES[:1], "srt", None, [answer(FILES[0])])
    written(FILES[:2], "text", None, [answer(FILES[0]), answer(FILES[1], error="bad")])
    assert capsys.readouterr().out.splitlines() == [
        "hello", "[00:00:00.000 --> 00:00:01.500] hello", "1", "00:00:00,000 --> 00:00:01,500", "hello",
        "a/one.wav: hello",
    ]  # fmt: skip
