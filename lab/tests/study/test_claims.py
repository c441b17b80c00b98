"""Test verdicts on made-up figures."""

import numpy as np
import pytest

from ossicle_lab.study.claims import evaluate_claims
from ossicle_lab.study.config import Claim
from ossicle_lab.study.table import Figure, Row

CLAIM = Claim(contrastive=["contr"], asr="asr", none="none", fraction=0.1, asr_within=2.0)


def figure(mean: float, *, sd: float | None = 0.5, half: float = 1.0) -> Figure:
    values = [mean] if sd is None else [mean - sd, mean, mean + sd]
    return Figure(mean, sd, mean - half, mean + half, values, mean + half * np.linspace(-1.02, 1.02, 201))


def row(name: str, fraction: float, **figures: Figure) -> Row:
    named = {{"wer": "asr:wer", "bleu": "st/de:bleu"}[key]: value for key, value in figures.items()}
    return Row("steps", name, fraction, [0, 1, 2], named, [])


def verdicts(*rows: Row) -> list[str]:
    return [finding.verdict for finding in evaluate_claims(rows, CLAIM, ["asr", "st/de"])]


def test_nothing_is_tested_without_rows():
    found = evaluate_claims([], CLAIM, ["asr", "st/de"])
    assert [finding.verdict for finding in found] == ["not tested"] * 4
    assert found[1].figures == "needs contr at 10% and asr at 10%, same steps"


@pytest.mark.parametrize(
    ("ours", "other", "verdict"),
    [
        (figure(60), figure(50), "holds"),
        (figure(60, half=6), figure(50, half=6), "partly"),  # utterances: 54 to 66 against 44 to 56
        (figure(60, sd=6), figure(50, sd=6), "partly"),  # seeds: 60 - 6 is below 50 + 6
        (figure(60, sd=None), figure(50), "partly"),  # one seed proves nothing
        (figure(50), figure(60), "fails"),
        (figure(50), figure(50), "fails"),
    ],
)
def test_better_needs_both_kinds_of_intervals_apart(ours, other, verdict):
    assert verdicts(row("contr", 0.1, bleu=ours), row("asr", 0.1, bleu=other))[1] == verdict


@pytest.mark.parametrize(
    ("ours", "verdict"), [(9.0, "holds"), (10.5, "holds"), (11.5, "partly"), (12.5, "fails"), (30.0, "fails")]
)
def test_close_allows_two_points_of_wer(ours, verdict):
    """ASR pretraining has 10 with constant draws: the difference is ours - 10 and its interval ± 1 point."""
    flat = Figure(10.0, 0.5, 9.5, 10.5, [9.5, 10.0, 10.5], np.full(201, 10.0))
    assert verdicts(row("contr", 0.1, wer=figure(ours)), row("asr", 0.1, wer=flat))[0] == verdict
    alone = verdicts(row("contr", 0.1, wer=figure(ours, sd=None)), row("asr", 0.1, wer=flat))[0]
    assert alone == ("partly" if verdict == "holds" else verdict)  # one seed proves nothing


def test_a_lower_word_error_rate_is_better_than_none_with_all_data():
    ours = row("contr", 0.1, wer=figure(10), bleu=figure(40))
    found = verdicts(ours, row("none", 1.0, wer=figure(20), bleu=figure(50)))
    assert found == ["not tested", "not tested", "holds", "fails"]
    assert verdicts(ours, row("none", 0.1, wer=figure(20)))[2] == "not tested"  # not all of the data


def test_other_modes_are_judged_where_they_have_rows():
    compute = Row("compute", "contr", 0.1, [0], {"st/de:bleu": figure(60)}, [])
    found = evaluate_claims([compute], CLAIM, ["st/de"])
    assert [finding.mode for finding in found] == ["steps", "steps", "compute", "compute"]


def test_no_pretraining_counts_under_every_mode():
    compute = Row("compute", "contr", 0.1, [0], {"st/de:bleu": figure(60)}, [])
    others = [row("none", 1.0, bleu=figure(50)), row("asr", 0.1, bleu=figure(50))]
    found = evaluate_claims([compute, *others], CLAIM, ["st/de"])
    assert [f.verdict for f in found if f.mode == "compute"] == ["not tested", "holds"]
