"""Test the page: all in one file, verdicts linked to their figures, tables and recordings."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile

from ossicle.cli.main import app
from ossicle.errors import DataError
from ossicle_lab.report.failing import Failing
from ossicle_lab.report.names import column_title, percent
from ossicle_lab.report.page import write_report
from ossicle_lab.report.recordings import recordings
from ossicle_lab.report.study_view import StudyView
from ossicle_lab.study.config import load
from ossicle_lab.study.run import run_study


class Page(HTMLParser):
    """Parse the page: open tags, links to other files, ids, text."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.ids: set[str] = set()
        self.all_ids: list[str] = []
        self.targets: set[str] = set()
        self.audio: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        self.all_ids += [values["id"]] if "id" in values else []
        self.ids = set(self.all_ids)
        for name in ("src", "href", "xlink:href"):
            value = values.get(name) or ""
            if value.startswith("#"):
                self.targets.add(value[1:])
            elif value.startswith("data:audio"):
                self.audio.append(value)
            elif value and not value.startswith("data:image/png"):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    """The folder of the one study that was run, once there is one."""
    return {}


@pytest.fixture
def study(finished, study_file, tmp_path) -> Path:
    """A copy of a finished study."""
    if not finished:
        config = load(study_file)
        run_study(config, processes=0)
        finished["folder"] = config.folder
    return Path(shutil.copytree(finished["folder"], tmp_path / "copy"))


def test_the_page_of_a_study_needs_no_other_file(study, tmp_path):
    outside = Page(write_report([study], tmp_path / "page.html", recordings=2).read_text())
    assert outside.audio == []  # the study is a copy, and its audio is where it was made
    assert outside.text.count("The audio is outside the folder of the report; name its folder with") == 2
    page = Page(
        write_report([study], tmp_path / "page.html", recordings=2, audio_folders=[tmp_path.parent]).read_text()
    )
    assert page.open == []
    assert page.outside == []
    assert page.targets <= page.ids
    assert sorted(page.all_ids) == sorted(set(page.all_ids))
    for text in ("The paper’s claim, part by part", "50% of the fine-tuning data", "23.78", "beats none"):
        assert text in page.text
    assert "Configuration" in page.text and "torch" in page.text
    assert "Token alignment" in page.text and "layer 3" in page.text
    assert len(page.audio) == 2
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(page.audio[0].partition(",")[2])))
    assert rate == 16_000 and 0.2 < len(waveform) / rate < 3
    references = re.findall(r"url\((?!#)|@import", (tmp_path / "page.html").read_text())
    assert references == []


def test_each_verdict_of_the_matrix_links_to_its_figures(study, tmp_path):
    record = json.loads((study / "results.json").read_text())
    verdicts = StudyView(study, count=0).verdicts
    cells = [cell for _, row in verdicts.rows for cell in row if cell is not None]
    assert sorted((c.claim, c.verdict, c.figures) for c in cells) == sorted(
        (c["claim"], c["verdict"], c["figures"]) for c in record["claims"]
    )
    assert verdicts.runs == ["contr"] and verdicts.mode_names == ["same steps"]
    assert sum(verdicts.counts.values()) == len(cells)
    page = write_report([study], tmp_path / "page.html").read_text()
    for cell in cells:
        assert f'href="#{cell.anchor}"' in page and f'<li id="{cell.anchor}">' in page
        assert f'<b aria-hidden="true">{cell.symbol}</b> <span>{cell.verdict}</span>' in page  # not by colour alone
    assert page.index("<figure") < page.index('class="matrix"') < page.index("<details")


def test_a_recording_that_is_gone_and_an_evil_hypothesis_do_no_harm(study, tmp_path):
    evil = {"hypothesis": "<script>alert(1)</script>", "audio": str(tmp_path / "gone.wav")}
    for path in study.rglob("hypotheses.jsonl"):
        lines = [json.loads(line) | evil for line in path.open()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = write_report([study], tmp_path / "page.html", audio_folders=[tmp_path]).read_text()
    assert "The audio file was not found or cannot be read." in text
    assert "<script" not in text and "&lt;script&gt;" in text


def test_failure_modes_are_shown_where_scoring_wrote_them_with_examples(study, tmp_path):
    for path in study.rglob("hypotheses.scores.json"):
        content = json.loads(path.read_text())
        lines = [json.loads(line) for line in path.with_name("hypotheses.jsonl").open()]
        lines[5]["hypothesis"] = "round and round"
        path.with_name("hypotheses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for row, count in zip(content["rows"], (1, 2, 0, 0), strict=True):
            examples = [lines[5]["id"], lines[6]["id"]][: count or 0]
            row["failures"] = [{"name": "looping", "applicable": 4, "count": count, "examples": examples}]
        path.write_text(json.dumps(content))
    failing = StudyView(study, count=0).failing()
    names, rows = failing.rates()
    assert names == ["looping"]
    assert dict(rows) == {"none": ["18.8"], "contr": ["18.8"]}  # 3 of 16
    ((name, examples),) = failing.examples()
    runs = [example.run for example in examples]
    assert name == "looping" and sorted(runs[:2]) == ["contr", "none"] and runs[2] == runs[0]
    assert examples[0].hypothesis == "round and round" and examples[0].reference
    page = Page(write_report([study], tmp_path / "page.html").read_text())
    assert page.open == [] and "Examples of looping" in page.text and "round and round" in page.text


def test_runs_whose_answers_are_gone_fail_in_no_way(tmp_path):
    failing = Failing({"gone": tmp_path / "hypotheses.jsonl"})
    assert failing.rates() == ([], []) and failing.examples() == []


def test_the_table_marks_the_best_of_a_fraction(study):
    record = json.loads((study / "results.json").read_text())
    for row in record["rows"]:
        better = row["name"] == "contr"
        row["scores"]["asr:wer"]["mean"] = 10.0 if better else 20.0
        row["scores"]["qa:f1"]["mean"] = 10.0 if better else 20.0
    (study / "results.json").write_text(json.dumps(record))
    ((_, fractions),) = StudyView(study, count=0).tables()
    assert [fraction for fraction, _ in fractions] == [0.5, 1.0]
    marked = {row.name: [cell.best for cell in row.cells] for row in fractions[0][1]}
    wer, f1 = record["columns"].index("asr:wer"), record["columns"].index("qa:f1")
    assert (marked["contr"][wer], marked["contr"][f1]) == (True, False)
    assert (marked["none"][wer], marked["none"][f1]) == (False, True)


def test_the_page_of_a_run(recipe, task_manifest, tmp_path):
    from typer.testing import CliRunner

    def ossicle(*arguments: object) -> str:
        return (
            CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False).stdout
        )

    path = recipe(objective={"name": "next_token"}, data={"train": [str(task_manifest)]}, train={"steps": 3})
    folder = Path(ossicle("train", path).strip())
    ossicle("evaluate", folder, task_manifest, "--max-new-tokens", "3")
    corpus = task_manifest.parent
    page = Page(Path(ossicle("report", folder, "--audio", "1", "--audio-folder", corpus).strip()).read_text())
    assert page.outside == [] and len(page.audio) == 1
    for word in ("Learning curve", "bleu", "wer", "objective:"):
        assert word in page.text
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"holds neither results\.json .* nor config\.yaml"):
        write_report([folder], tmp_path / "page.html")


def test_a_page_contains_no_audio_from_elsewhere(tmp_path):
    """A file of hypotheses names any file of the computer: by its path, through a link, or with two dots."""
    run, elsewhere = tmp_path / "run", tmp_path / "private"
    for path in (run / "audio/a.wav", elsewhere / "b.wav"):
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, [0.1] * 16_000, 16_000)
    (run / "link.wav").symlink_to(elsewhere / "b.wav")
    (run / "loop.wav").symlink_to(run / "loop.wav")
    paths = ["audio/a.wav", "link.wav", "loop.wav", "../private/b.wav", "null\0.wav"]
    lines = [
        {"id": str(i), "hypothesis": "x", "references": ["x"], "audio": f"{run}/{path}"} for i, path in enumerate(paths)
    ]
    file = run / "eval/test.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = recordings({"run": file}, 9, [], [run])
    assert sum(recording.audio is not None for recording in found) == 1
    assert len(found) == len(paths)
    assert sum(recording.missing.startswith("The audio is outside") for recording in found) == 2
    assert sum(r.audio is not None for r in recordings({"run": file}, 9, [], [run, elsewhere])) == 3


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None])
def test_a_run_without_a_finite_loss(tmp_path, loss):
    (tmp_path / "config.yaml").write_text("train: {}\n")
    records = [{"split": "train", "step": step, "loss": loss} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = Page(write_report([tmp_path], tmp_path / "page.html").read_text())
    assert page.open == [] and "Loss: none of the 2 recorded values is finite." in page.text
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "step": 3, "loss": 2.0}\n')
    assert "<figure" in write_report([tmp_path], tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", ["results.json", "versions.json", "eval/a.scores.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "{}", "\0"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    if (name, content) == ("versions.json", "{}"):
        return
    (tmp_path / "eval").mkdir()
    (tmp_path / "config.yaml").write_text("train: {}\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        write_report([tmp_path], tmp_path / "page.html")


def test_names_of_columns():
    columns = ("asr:wer", "st/de:bleu", "st/xx:bleu", "time_first:em", "unseen", "asr@test-other:wer")
    titles = [column_title(column) for column in columns]
    assert titles == [
        "Recognition, WER",
        "German, BLEU",
        "xx, BLEU",
        "Time first, exact",
        "Unseen tasks, mean",
        "Recognition (test-other), WER",
    ]
    assert [percent(f) for f in (0.01, 0.1, 1.0, 0.125)] == ["1%", "10%", "100%", "12.5%"]
