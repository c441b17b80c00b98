"""Test the lab's corpus of a study: tasks that stage 2 must not see, questions, and voices."""

from dataclasses import replace
from pathlib import Path

import pytest

from ossicle.corpora.voices import held_out_voices
from ossicle.data.manifest import read_manifest
from ossicle.prompts import task_key
from ossicle_lab.study import lab_data
from ossicle_lab.study.config import LabCorpus, StudyData
from ossicle_lab.study.lab_data import make_lab_data
from ossicle_lab.world.corpus import speak_passages, task_lines
from ossicle_lab.world.passages import sample_passages

pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[lab]"')
CORPUS = LabCorpus(train=12, extra=4, dev=6, test=8, max_sentences=2, question_sentences=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> StudyData:
    plain = StudyData(lab=CORPUS, tasks=["asr", "st/de", "qa"], unseen=["st/es", "persons"])
    return make_lab_data(tmp_path_factory.mktemp("lab"), plain, CORPUS)


def tasks(manifest: str) -> set[str]:
    return {task_key(sample.task, sample.target_language) for sample in read_manifest(manifest)}


def test_unseen_tasks_are_in_the_test_alone(data):
    assert tasks(data.finetune[0]) == tasks(data.dev[0]) == {"asr", "st/de", "qa"}
    assert tasks(data.test[0]) == {"asr", "st/de", "qa", "st/es", "persons"}


def test_splits_share_no_voice_and_no_text(data):
    splits = [read_manifest(paths[0]) for paths in (data.pretrain, data.dev, data.test)]
    for field in ("speaker", "text"):
        values = [{getattr(sample, field) for sample in split} for split in splits]
        assert not values[0] & values[1] and not values[0] & values[2] and not values[1] & values[2], field


def test_a_search_is_scored_on_development_voices_and_passages(tmp_path):
    corpus = replace(CORPUS, train=2, extra=0, test=4, test_split="dev")
    made = make_lab_data(tmp_path, StudyData(lab=corpus, tasks=["asr"]), corpus)
    dev, scored = (read_manifest(paths[0]) for paths in (made.dev, made.test))
    assert {s.speaker for s in scored} <= {voice.name for voice in held_out_voices()[::3]}
    assert len(scored) == 4 and not {s.text for s in dev} & {s.text for s in scored}
    tested = {p.text for p in sample_passages("test", 400, seed=corpus.seed, max_sentences=2)}
    assert not tested & {s.text for s in scored}


def test_extra_passages_are_further_ones_without_tasks(data):
    pretrain, extra = (read_manifest(paths[0]) for paths in (data.pretrain, data.extra))
    assert (len(pretrain), len(extra)) == (12, 4)
    assert not {s.text for s in pretrain} & {s.text for s in extra}
    assert {s.text for s in read_manifest(data.finetune[0])} == {s.text for s in pretrain}


def test_questions_are_about_two_sentences(data):
    lines = read_manifest(data.finetune[0])
    asked = {s.text for s in lines if s.task == "qa"}
    shortest = min(len(text.split()) for text in asked)
    assert 0 < len(asked) < 12
    assert shortest > min(len(s.text.split()) for s in lines)


def test_the_voice_is_asked_about_and_changes_no_other_line(data):
    samples = read_manifest(data.alignment[0])
    passages = sample_passages("test", len(samples), seed=CORPUS.seed, max_sentences=2)
    plain, asked = (task_lines(samples, passages, tasks, 0) for tasks in (("asr", "qa"), ("asr", "voice", "qa")))
    women = {voice.name for voice in held_out_voices() if voice.gender == "female"}
    about = [line for line in asked if line.task == "voice"]
    assert len(about) == len(samples) == 8
    assert all(line.answers == ("the woman" if line.speaker in women else "the man",) for line in about)
    assert [line for line in asked if line.task != "voice"] == plain


def test_training_passages_have_the_lengths_that_are_asked_for(tmp_path):
    corpus = LabCorpus(train=40, dev=1, test=2, max_sentences=2, train_shares=[1000, 1])
    passages: list = []

    def record(folder, split, drawn, voices, seed):
        passages.extend(drawn if split == "train" else [])
        return speak_passages(folder, split, drawn[:1], voices, seed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab_data, "speak_passages", record)
        patched.setattr(lab_data, "_write_tasks", lambda path, *_: path)
        make_lab_data(tmp_path, StudyData(lab=corpus), corpus)
    assert [len(passage.sentences) for passage in passages] == [1] * 40  # with equal shares one in 2**40


def test_a_second_call_leaves_the_audio_alone(data):
    again = StudyData(lab=CORPUS, tasks=["asr", "st/de", "qa"], unseen=["st/es", "persons"])
    folder = Path(data.finetune[0]).parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    assert len(before) == 30
    assert make_lab_data(folder, again, CORPUS) == data
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")} == before
