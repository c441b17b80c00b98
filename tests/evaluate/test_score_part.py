"""Scores of divided files are those of one call."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from ossicle.cli.main import app
from ossicle.errors import HypothesesError
from ossicle.evaluate import score_part as parts
from ossicle.evaluate.comet import CometOptions
from ossicle.evaluate.metrics import METRICS
from ossicle.evaluate.official import OFFICIAL
from ossicle.evaluate.parts import VALUES, Score
from ossicle.evaluate.rescore import rescore
from ossicle.evaluate.score import ScoreOptions
from ossicle.shards import Shard

OPTIONS = ScoreOptions(resamples=50, official=True)
WORDS = ["the", "red", "car", "saw", "a", "small", "dog", "on", "my", "long", "way", "home"]


def lines():
    """Lines of all tasks; in `st` most references are Chinese, the first are not, and no language is named."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(11):
        said, right = (" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(2))
        shared = {"speaker": f"s{number % 4}", "text": right}
        chinese = right if number < 3 else "我昨天看见一只红色的小狗在路上跑"
        color = ["red", "blue", "blue"][number % 3]
        made += [
            {"task": "asr", "language": "en", "hypothesis": said, "references": [right, said[:4]], **shared},
            {"task": "st", "hypothesis": chinese[: number + 1], "references": [chinese], **shared},
            {"task": "qa", "language": "en", "hypothesis": "la " * number, "references": ["la la"], **shared},
            {"task": "voice", "language": "en", "hypothesis": color, "references": [color, "blue"], **shared},
            {"task": "meta", "language": "en", "hypothesis": "ann", "references": [f"{color}, fast: yes"], **shared},
        ]
    alone = {**made[0], "language": "de"}  # a group of one line
    return [{"id": f"u{i // 5}", **line} for i, line in enumerate([*made, alone])]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    return path


def hidden(path):
    return sorted(each.name for each in path.parent.glob(f".{path.name}.*") if each.suffix != ".lock")


@pytest.mark.parametrize("count", [1, 2, 4, 30])
def test_equal_to_one_call(path, count):
    whole = rescore([path], OPTIONS).to_json()
    for shard in Shard.all_of(count)[::-1]:
        parts.score_part(shard, [path], OPTIONS)
    with parts.finished([path], OPTIONS, Shard(1, count)) as waiting:
        assert not waiting
        divided = rescore([path], OPTIONS, groups_of=lambda *given: parts.joined(*given, count=count)).to_json()
    assert json.dumps(divided) == json.dumps(whole)
    assert hidden(path) == []
    rows = {row["task"]: row for row in whole["runs"][str(path)]}
    assert "tok:zh" in rows["st"]["signatures"]["bleu"]  # by all references; the first are English
    assert rows["meta"]["scores"]["majority/fast"] == 100
    assert next(found for found in rows["qa"]["failures"] if found["name"] == "looping")["count"] > 0


def test_the_command_prints_what_one_call_prints(path):
    def run(*more):
        done = CliRunner().invoke(app, ["score", str(path), "--json", "--resamples", "20", *more])
        assert done.exit_code == 0
        return done

    whole = run().stdout
    first = run("--shard", "2/2")
    assert first.stdout == ""
    assert "h.jsonl: shard 2/2 is finished; 1 of 2 are not: 1" in first.stderr
    assert len(hidden(path)) == 1
    assert run("--shard", "1/2").stdout == whole
    assert hidden(path) == []


def test_only_missing_parts_are_scored(path, monkeypatch):
    parts.score_part(Shard(1, 2), [path], OPTIONS)
    asked = []
    monkeypatch.setattr(parts, "score_lines", lambda lines, options, shard: asked.append(shard) or [])
    for shard in Shard.all_of(2):
        parts.score_part(shard, [path], replace(OPTIONS, resamples=0, seed=5))  # counts do not depend on these
    assert asked == [Shard(2, 2)]


def test_parts_of_other_lines_or_settings_are_not_read(path):
    parts.score_part(Shard(1, 1), [path], OPTIONS)
    with parts.finished([path], replace(OPTIONS, normalise="none"), Shard(1, 1)) as waiting:
        assert waiting
    path.write_text(path.read_text().replace("the", "my"))
    with parts.finished([path], OPTIONS, Shard(1, 1)) as waiting:
        assert waiting


def test_parts_stay_after_an_error(path):
    parts.score_part(Shard(1, 1), [path], OPTIONS)
    with pytest.raises(HypothesesError), parts.finished([path], OPTIONS, Shard(1, 1)):
        raise HypothesesError("files cannot be compared")
    assert len(hidden(path)) == 1


def test_a_part_that_comes_after_the_join(path):
    with parts.finished([path], OPTIONS, Shard(1, 2)) as waiting:
        assert waiting == f"{path}: another part has joined the scores"


def test_a_damaged_part_is_named(path):
    parts.score_part(Shard(1, 1), [path], OPTIONS)
    [name] = hidden(path)
    (path.parent / name).write_bytes(b"PK")
    with pytest.raises(HypothesesError, match=r"1-of-1: cannot be read .*delete it"):
        parts.joined(path, OPTIONS, 1)


def test_parts_of_different_packages_are_refused(path, monkeypatch):
    parts.score_part(Shard(1, 2), [path], OPTIONS)
    monkeypatch.setattr("ossicle.evaluate.error_rates.version", lambda name: "0.0")
    parts.score_part(Shard(2, 2), [path], OPTIONS)
    with pytest.raises(HypothesesError, match=r"different metrics, .*jiwer:0\.0: use the same packages"):
        parts.joined(path, OPTIONS, 2)


def test_a_metric_that_fails_in_one_part_is_an_error_of_all(path):
    scorer = path.with_name("scorer.py")
    scorer.write_text(
        "import json, sys\n"
        "lines = [json.loads(line) for line in open(sys.argv[1])][1:]\n"
        "if len(lines) > 5: sys.exit('out of memory')\n"
        "answers = [{'model': 'm', 'version': '1'}] + [{'score': 0.5} for _ in lines]\n"
        "open(sys.argv[2], 'w').write(chr(10).join(map(json.dumps, answers)))\n"
    )
    options = replace(OPTIONS, comet=CometOptions(f"{sys.executable} {scorer}"))
    found = {}
    for count in (2, 3):  # 5 and 6 lines; 3, 4 and 4
        for shard in Shard.all_of(count):
            parts.score_part(shard, [path], options)
        [found[count]] = [group for group in parts.joined(path, options, count) if group.lines[0].task == "st"]
    assert "out of memory" in found[2].errors["comet"]
    assert "comet" not in found[2].scores
    assert found[3].scores["comet"].value == 50
    assert found[3].errors == {}


def test_a_metric_without_counts_is_an_error_and_the_others_are_scored(path, monkeypatch):
    monkeypatch.setitem(METRICS, "qa", {**METRICS["qa"], "own": lambda *_: Score(1.0, "own")})
    parts.score_part(Shard(1, 1), [path], OPTIONS)
    [questions] = [group for group in parts.joined(path, OPTIONS, 1) if group.lines[0].task == "qa"]
    assert "score without --shard and --ray" in questions.errors["own"]
    assert {"em", "f1"} <= set(questions.scores)


def test_counts_of_every_metric_can_be_read_from_a_file():
    for metrics in (*METRICS.values(), *OFFICIAL.values()):
        for metric in metrics.values():
            value_of = metric(["a b"], [["a b c"]], "en").parts.value_of
            assert VALUES[value_of.__name__] is value_of
