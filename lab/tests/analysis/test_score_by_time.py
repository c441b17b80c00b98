"""Scores against the time of stage 1, from the results of several studies."""

import json

import pytest
from typer.testing import CliRunner

from ossicle.errors import DataError
from ossicle_lab.analysis import score_by_time
from ossicle_lab.analysis.score_by_time import Point, points_of


def study(folder, rows):
    folder.mkdir()
    record = {
        "rows": [
            {"name": name, "mode": "steps", "scores": {"asr:wer": {"mean": wer}}} for name, _, _, wer in rows
        ],
        "settings": {
            name: {"used": {"steps": {"steps": steps}}, "cost_s_per_step": cost} for name, steps, cost, _ in rows
        },
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_points_are_ordered_by_time_and_the_first_study_counts(tmp_path):
    studies = [
        study(tmp_path / "long", [("a", 400, 0.3, 20.0), ("none", 0, None, 99.0)]),
        study(tmp_path / "short", [("a", 100, 0.6, 80.0), ("b", 60, 1.0, 70.0)]),
        study(tmp_path / "again", [("a", 400, 9.0, 1.0)]),
    ]
    assert points_of(studies, "asr:wer") == {
        "a": [Point(1.0, 100, 80.0), Point(2.0, 400, 20.0)],
        "b": [Point(1.0, 60, 70.0)],
    }


def test_the_command_prints_the_points_and_draws(tmp_path):
    folder = study(tmp_path / "one", [("a", 400, 0.3, 20.0)])
    app = score_by_time.typer.Typer()
    app.command()(score_by_time.main)
    out = tmp_path / "wer.png"
    result = CliRunner().invoke(app, [str(folder), "--out", str(out)], catch_exceptions=False)
    assert "| a | 400 | 2.00 | 20.0 |" in result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_study_without_results_or_metric_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone/results\.json: cannot be read .* finish the study first"):
        points_of([tmp_path / "gone"], "asr:wer")
    with pytest.raises(DataError, match="no study has a row with stage 1 and the metric 'x'"):
        points_of([study(tmp_path / "one", [("a", 400, 0.3, 20.0)])], "x")
