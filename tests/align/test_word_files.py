from pathlib import Path

import pytest

from ossicle.align.files import import_words
from ossicle.align.word_files import read_ctm, read_textgrid
from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.data.words import WordTime, words_of
from ossicle.errors import WordFileError

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 2.5
        points: size = 1
        points [1]:
            number = 0.75
            mark = "tick"
    item [2]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "anna"
        intervals [3]:
            xmin = 1.25
            xmax = 1.5
            text = "<unk>"
        intervals [4]:
            xmin = 1.5
            xmax = 2.5
            text = "said ""no"" 3"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "spn"
"""
SHORT = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n2.5\n<exists>\n{tiers}\n'
WORDS = [
    WordTime("anna", 0.5, 1.25),
    WordTime("<unk>", 1.25, 1.5, aligned=False),
    WordTime('said "no" 3', 1.5, 2.5),
]


def tier(name: str, *intervals: tuple[float, float, str]) -> str:
    rows = [f'{start}\n{end}\n"{text}"' for start, end, text in intervals]
    return "\n".join(['"IntervalTier"', f'"{name}"', "0\n2.5", str(len(rows)), *rows])


def short(*tiers: str) -> str:
    return SHORT.format(tiers="\n".join([str(len(tiers)), *tiers]))


def test_the_long_and_the_short_format_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(LONG)
    assert read_textgrid(path) == WORDS
    path.write_bytes(short(TIER).replace("\n", "\r\n").encode("utf-16"))
    assert read_textgrid(path) == WORDS


def test_the_tier_of_the_speaker_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(short(tier("anna - words", (0, 1, "hi")), tier("ben - words", (1, 2, "ho")), tier("ben - phones")))
    assert read_textgrid(path, speaker="ben") == [WordTime("ho", 1, 2)]
    with pytest.raises(WordFileError, match=r"a\.TextGrid: the tier of words is not clear .*'ben - phones'"):
        read_textgrid(path)
    path.write_text(short(tier("ORT", (0, 1, "hi"))))
    assert read_textgrid(path) == [WordTime("hi", 0, 1)]


TIER = tier("words", (0, 0.5, ""), (0.5, 1.25, "anna"), (1.25, 1.5, "<unk>"), (1.5, 2.5, 'said ""no"" 3'))


@pytest.mark.parametrize("text", [short(TIER).rstrip(), "\ufeff" + short(TIER), LONG.replace("\n", "\r")])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_bytes(text.encode())
    assert read_textgrid(path) == WORDS


@pytest.mark.parametrize(
    "text, message",
    [
        ("anna 0 1\n", r"a\.TextGrid:1: is not a TextGrid"),
        (LONG.replace('"TextGrid"', '"PitchTier"'), r"a\.TextGrid:1: is not a TextGrid"),
        (LONG.replace("xmax = 1.25", "xmax ="), r"a\.TextGrid: is not a valid TextGrid"),
        (LONG.replace("xmin = 0.5", "xmin = -0.5"), r"a\.TextGrid:29: the time -0\.5 is negative"),
        (LONG.replace("xmax = 1.25", "xmax = 0.25"), r"interval 2 of tier 'words' \('anna'\) lasts from 0\.5 to 0\.25"),
        ("".join(LONG.splitlines(keepends=True)[:30]), r"a\.TextGrid: is not a valid TextGrid"),
        ("".join(LONG.splitlines(keepends=True)[:35]), r"a\.TextGrid: is cut off: it states 3 tiers with \[4\]"),
        ("".join(LONG.splitlines(keepends=True)[:39]), r"states 3 tiers with \[4\] intervals, 2 tiers with \[4\]"),
        (short(TIER)[:-12], r"a\.TextGrid: is cut off: it states 1 tiers with \[4\] intervals, 1 tiers with \[3\]"),
    ],
)
def test_a_broken_textgrid_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.TextGrid"
    path.write_text(text)
    with pytest.raises(WordFileError, match=message):
        read_textgrid(path)


def test_ctm(tmp_path: Path) -> None:
    path = tmp_path / "a.ctm"
    path.write_text(";; made by hand\nb A 0.5 0.25 ho 0.99\na 1 1.0 0.5 saw\na 1 0.25 0.5 anna\na 1 0.75 0.2 <eps>\n\n")
    assert read_ctm(path) == {
        "b": [WordTime("ho", 0.5, 0.75)],
        "a": [WordTime("anna", 0.25, 0.75), WordTime("saw", 1.0, 1.5)],
    }
    for line, message in [
        ("a 1 0.5 word", "has 4 fields"),
        ("a 1 x 0.5 word", "'x' is not a time"),
        ("a 1 0 -1 w", "'-1'"),
    ]:
        path.write_text(f"a 1 0 1 w\n{line}\n")
        with pytest.raises(WordFileError, match=rf"a\.ctm:2: .*{message}"):
            read_ctm(path)
    path.write_bytes(b"a 1 0 1 w\na 1 0 1 \xff\n")
    with pytest.raises(WordFileError, match=r"a\.ctm:2: is not UTF-8"):
        read_ctm(path)


def manifest_of(folder: Path, *samples: Sample) -> Path:
    write_manifest(folder / "in.jsonl", samples)
    return folder / "in.jsonl"


def test_import_gives_utterances_and_segments_their_words(tmp_path: Path) -> None:
    talk = tmp_path / "talk.wav"
    manifest = manifest_of(
        tmp_path,
        Sample(id="u1", audio=tmp_path / "x.wav", text="Anna, saw!", start_s=100.0, end_s=102.0),
        Sample(id="s1", audio=talk, text="one two", end_s=1.0),
        Sample(id="s2", audio=talk, text="three", start_s=1.0, end_s=2.0),
    )
    ctm = tmp_path / "all.ctm"
    ctm.write_text("u1 1 0.5 0.5 anna\nu1 1 1.0 0.5 saw\ntalk 1 0 0.5 one\ntalk 1 0.5 0.4 two\ntalk 1 0.9 0.6 three\n")
    import_words(manifest, tmp_path / "out.jsonl", ctm)
    samples = read_manifest(tmp_path / "out.jsonl")
    assert [[word.to_json() for word in words_of(sample)] for sample in samples] == [
        [["Anna,", 0.5, 1.0], ["saw!", 1.0, 1.5]],  # found by id: times of the utterance; spelled as in the text
        [["one", 0.0, 0.5], ["two", 0.5, 0.9]],
        [["three", 0.0, 0.5]],
    ]
    assert {sample.extra["words_from"] for sample in samples} == {"ctm"}


def test_import_of_a_folder_of_textgrids(tmp_path: Path) -> None:
    manifest = manifest_of(
        tmp_path,
        Sample(id="a", audio=tmp_path / "1.wav", speaker="anna", text="hi"),
        Sample(id="b", audio=tmp_path / "2.wav", speaker="ben", text="ho"),
        Sample(id="c", audio=tmp_path / "3.wav", text="one two three"),
    )
    grids = tmp_path / "grids"
    for name, word in [("anna/1", "hi"), ("ben/1", "wrong"), ("ben/b", "ho"), ("3", "something else")]:
        (grids / name).parent.mkdir(parents=True, exist_ok=True)
        (grids / f"{name}.TextGrid").write_text(short(tier("words", (0, 1, word))))
    (grids / "anna" / "._1.TextGrid").write_bytes(b"\x00\x05\x16\x07")  # hidden, as macOS writes them on other disks
    out = tmp_path / "out.jsonl"
    with pytest.raises(WordFileError, match=r"in\.jsonl:3: 'c' has other words in the file: 'something else'"):
        import_words(manifest, out, grids)
    report = import_words(manifest, out, grids, skip_broken=True)
    assert [(sample.id, words_of(sample)[0].word) for sample in report.samples] == [("a", "hi"), ("b", "ho")]
    assert "2 utterances, 2 words, 0 of them interpolated" in report.summary() and "'c' skipped" in report.summary()
    (grids / "3.TextGrid").unlink()
    with pytest.raises(WordFileError, match=r"'c' has no TextGrid c\.TextGrid or 3\.TextGrid below"):
        import_words(manifest, out, grids)


def test_audio_of_the_same_name_in_two_folders_has_its_own_words(tmp_path: Path) -> None:
    """The texts are equal, so that only the folder tells which file belongs to which recording."""
    names = ("spk1/000", "spk2/000", "spk3/000")
    samples = [Sample(id=f"u{i}", audio=tmp_path / f"wav/{name}.wav", text="hi") for i, name in enumerate(names)]
    samples.append(Sample(id="spk2/000", audio=tmp_path / "copy.wav", text="hi"))
    manifest = manifest_of(tmp_path, *samples)
    grids, out = tmp_path / "grids", tmp_path / "out.jsonl"
    for i, name in enumerate(names[:2]):
        (grids / name).parent.mkdir(parents=True, exist_ok=True)
        (grids / f"{name}.TextGrid").write_text(short(tier("words", (i, i + 1, "hi"))))
    report = import_words(manifest, out, grids, skip_broken=True)
    assert [(sample.id, words_of(sample)[0].start_s) for sample in report.samples] == [
        ("u0", 0.0), ("u1", 1.0), ("spk2/000", 1.0),
    ]  # fmt: skip
    assert "'u2' skipped: has 2 TextGrids" in report.summary()
    (grids / "spk2/000.TextGrid").unlink()
    with pytest.raises(WordFileError, match=r"'u1' shares the file name 000\.wav with other audio"):
        import_words(manifest, out, grids)
    (tmp_path / "all.ctm").write_text("000 1 0.5 0.5 hi\n")
    with pytest.raises(WordFileError, match=r"'u0' shares the file name 000\.wav with other audio; name it by its id"):
        import_words(manifest, out, tmp_path / "all.ctm")
