"""Test the normalised average against numbers computed by hand."""

import numpy as np
import pytest

from ossicle_lab.study.normalised import normalised, references
from ossicle_lab.study.table import Figure

TASKS = ["asr", "st/de", "qa"]


def figures(wer: float, bleu: float, f1: float, *, sd: float = 0.0) -> dict[str, Figure]:
    columns = {"asr:wer": wer, "st/de:bleu": bleu, "qa:f1": f1, "qa:em": 99.0, "unseen": 99.0}
    return {
        column: Figure(mean, sd, mean, mean, [mean - sd, mean + sd], np.array([mean, mean + 1]))
        for column, mean in columns.items()
    }


def test_half_way_on_every_task_is_fifty():
    scales = references(figures(60, 0, 20), figures(0, 80, 100), TASKS)
    assert scales == {"asr:wer": (60, 0), "st/de:bleu": (0, 80), "qa:f1": (20, 100)}
    values, draws = normalised(figures(30, 40, 60), scales)
    assert values == [50, 50]
    # one point more: 1/60 worse, 1/80 and 1/80 better
    assert draws == pytest.approx([50, 50 + (-100 / 60 + 100 / 80 + 100 / 80) / 3])


def test_seeds_keep_their_own_values_and_may_lie_outside():
    scales = references(figures(60, 0, 20), figures(0, 80, 100), TASKS)
    values, _ = normalised(figures(60, 0, 20, sd=12), scales)
    low, high = (100 * (12 / 60 - 12 / 80 - 12 / 80) / 3, 100 * (-12 / 60 + 12 / 80 + 12 / 80) / 3)
    assert values == pytest.approx([low, high])


def test_no_average_without_references_that_differ():
    assert references(None, figures(0, 80, 100), TASKS) is None
    assert references(figures(60, 0, 20), None, TASKS) is None
    assert references(figures(60, 0, 100), figures(0, 80, 100), TASKS) is None


def test_what_no_transcript_answers_is_left_out():
    lower, upper = figures(60, 0, 20), figures(0, 80, 100)
    assert references(lower, upper, [*TASKS, "voice", "meta"]) == references(lower, upper, TASKS)
    assert references(lower, upper, ["voice"]) is None
