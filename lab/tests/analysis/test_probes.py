from pathlib import Path

import numpy as np
import pytest
import torch

from ossicle.batch import Sample
from ossicle_lab.analysis.probes import FIELDS, ProbeError, _binned, majority, make_task, probe, words_per_second

pytest.importorskip("sklearn")
FIELD = {field.name: field for field in FIELDS}


def said(number, **fields):
    known = {"text": f"sentence {number}", "speaker": f"speaker {number % 10}", "duration_s": 1.0, **fields}
    return Sample(id=str(number), audio=Path(f"{number}.wav"), **known)


def by_gender(count=60):
    """Ten speakers, the even ones women."""
    return [said(i, extra={"gender": "male" if i % 2 else "female"}) for i in range(count)]


def one_hot(values):
    names = sorted(set(values))
    return torch.eye(len(names))[[names.index(value) for value in values]]


def test_gender_is_tested_on_new_voices():
    samples = by_gender()
    task = make_task(FIELD["gender"], samples)
    assert task.classes == {"female": 30, "male": 30}
    assert len(task.folds) == 5
    speakers = np.array([sample.speaker for sample in samples])
    for train, test in task.folds:
        assert not set(speakers[train]) & set(speakers[test])
    assert sorted(np.concatenate([test for _, test in task.folds])) == list(range(60))


def test_knowing_the_voice_does_not_reveal_the_gender():
    samples = by_gender()
    task = make_task(FIELD["gender"], samples)
    voices, genders = ([get(s) for s in samples] for get in (lambda s: s.speaker, lambda s: s.extra["gender"]))
    assert probe(one_hot(genders), task).accuracy == 100
    assert probe(one_hot(genders), task).sd == 0
    assert probe(one_hot(voices), task).accuracy < 75  # with the same voices in training and test it would be 100
    assert majority(task) == 50


def test_the_speaker_is_tested_on_new_sentences():
    samples = [said(i, text=f"sentence {i // 10}") for i in range(60)]  # each speaker reads each sentence
    task = make_task(FIELD["speaker"], samples)
    texts = np.array([sample.text for sample in samples])
    for train, test in task.folds:
        assert not set(texts[train]) & set(texts[test])
    assert probe(one_hot([sample.speaker for sample in samples]), task).accuracy == 100
    assert majority(task) == 10


def test_the_rate_is_probed_without_voices_and_sentences_of_training():
    samples = [said(i, text=f"say {i // 2} again", duration_s=1 + i / 60) for i in range(60)]
    task = make_task(FIELD["speaking rate"], samples)
    assert words_per_second(samples[30]) == pytest.approx(2)
    assert task.bins == pytest.approx(np.quantile([3 / (1 + i / 60) for i in range(60)], (1 / 3, 2 / 3)))
    assert task.classes == {"high": 20, "low": 20, "middle": 20}
    for column in (lambda s: s.speaker, lambda s: s.text):
        values = np.array([column(sample) for sample in samples])
        assert not any(set(values[train]) & set(values[test]) for train, test in task.folds)


def test_numbers_are_binned_and_names_are_not():
    assert _binned([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[0] == ["low", "low", "middle", "middle", "high", "high"]
    assert _binned([1.0, "50-70"]) == (["1.0", "50-70"], None)


def test_unknown_and_rare_classes_are_left_out():
    samples = by_gender()
    assert len(make_task(FIELD["speaker"], samples).classes) == 10  # of six sentences each
    short = [sample for i, sample in enumerate(samples) if i < 45]  # five speakers of five sentences, five of four
    assert list(make_task(FIELD["speaker"], short).classes) == [f"speaker {i}" for i in range(5)]
    samples += [said(60, extra={"gender": "unknown"}), said(61), said(62, speaker=None, extra={"gender": "male"})]
    assert sorted(make_task(FIELD["gender"], samples).rows) == list(range(60))


def test_what_cannot_be_probed_is_explained():
    samples = by_gender()
    with pytest.raises(ProbeError, match="no line has a value"):
        make_task(FIELD["emotion"], samples)
    with pytest.raises(ProbeError, match='no line has a "speaker"'):
        make_task(FIELD["gender"], [said(i, speaker=None, extra={"gender": "male"}) for i in range(40)])
    with pytest.raises(ProbeError, match="0 utterances are of the 0 classes with 2 speakers or more"):
        make_task(FIELD["gender"], [said(i, speaker=str(i % 2), extra={"gender": str(i % 2)}) for i in range(40)])
    with pytest.raises(ProbeError, match="all speakers read the same sentences"):
        same = [said(i, text=f"sentence {i // 10}", duration_s=1 + i / 60) for i in range(60)]
        make_task(FIELD["speaking rate"], same)


def test_everything_is_fitted_on_the_training_folds():
    """A random label cannot be predicted, however many dimensions there are."""
    torch.manual_seed(0)
    samples = [said(i, speaker=str(i % 50), extra={"emotion": "ab"[(i // 3) % 2]}) for i in range(200)]
    task = make_task(FIELD["emotion"], samples)
    assert probe(torch.randn(200, 1000), task).accuracy < 65
