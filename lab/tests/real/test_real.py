from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.evaluate.metrics import normalise_basic
from ossicle_lab.models.ctc import save_encoder
from ossicle_lab.models.tiny_hubert import tiny_hubert
from ossicle_lab.real.speech import Scale, run
from ossicle_lab.real.speech_corpus import (
    SPELLABLE,
    TRAIN,
    TRANSLATED,
    RealCorpus,
    Sizes,
    read_corpus,
    split_by_speaker,
    training_texts,
)
from ossicle_lab.real.texts import LANGUAGES, TextSizes
from places import SHARED

SHARED = SHARED / "data"
RECORDED = SHARED / "real_speech"
needs_recordings = pytest.mark.skipif(not (RECORDED / TRAIN).is_dir(), reason=f"no recorded speech in {RECORDED}")
TINY = Scale(
    sizes=Sizes(dev_speakers=1, test_utterances=4, candidates=4, texts=TextSizes(multi30k=2, tatoeba=2)),
    encoder_steps=2,
    encoder_batch_s=12.0,
    llm_steps=2,
    llm_rows=3,
    study=(
        "stage1.steps=2",
        "finetuning.steps={0.1: 1, 1.0: 2}",
        "pretraining={none: {recipe: null}, contr-wasser-emb: {recipe: lab/contr-wasser-emb}}",
        "seeds=[0]",
        "max_new_tokens=3",
    ),
)


def said(speaker: str, text: str) -> Sample:
    return Sample(id=f"{speaker} {text}", audio=Path("x.wav"), text=text, speaker=speaker)


def test_split_shares_neither_speakers_nor_sentences() -> None:
    samples = [said(speaker, text) for speaker in "abcdefgh" for text in ("hello", f"{speaker} is here")]
    split = split_by_speaker(samples, {"b", "g"}, 1)
    parts = (split.train, split.dev, split.test)
    speakers = [{sample.speaker for sample in part} for part in parts]
    assert [len(names) for names in speakers] == [5, 1, 2]
    assert speakers[2] == {"b", "g"}
    assert len(set.union(*speakers)) == 8
    assert sorted(sample.text or "" for sample in split.train) == sorted(f"{name} is here" for name in speakers[0])


def test_split_is_seeded() -> None:
    samples = [said(speaker, f"{speaker} is here") for speaker in "abcdefghijkl"]
    first, again, other = (split_by_speaker(samples, {"a"}, 1, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_too_few_speakers() -> None:
    with pytest.raises(ValueError, match="1 speakers besides those of the test are too few to keep 8 for development"):
        split_by_speaker([said("a", "hello"), said("b", "hello")], {"b"}, 8)


def test_texts_are_made_to_fit_or_left_out(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "audio": "1.wav", "speaker": "a", "text": "IT'S FINE, ISN'T IT?"},
        {"id": "2", "audio": "2.wav", "speaker": "a", "text": "42"},
        {"id": "3", "audio": "3.wav", "speaker": None, "text": "HELLO"},
        {"id": "4", "audio": "4.wav", "speaker": "a", "text": None},
    ]
    (tmp_path / TRAIN).mkdir()
    (tmp_path / TRAIN / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [sample.text for sample in read_corpus(tmp_path, TRAIN)] == ["it's fine isn't it"]


def test_folder_without_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {TRAIN}/manifest.jsonl; give the folder"):
        read_corpus(tmp_path, TRAIN)


@needs_recordings
def test_recordings_keep_the_convention_and_the_promise() -> None:
    samples = read_corpus(RECORDED, TRAIN)
    assert len(samples) == 4400
    assert all(SPELLABLE.fullmatch(sample.text or "") for sample in samples)
    translated = [sample for sample in read_corpus(RECORDED, TRANSLATED) if sample.extra.get("translations")]
    speakers = {sample.speaker or "" for sample in translated}
    split = split_by_speaker(samples, speakers, 8)
    for held_out in (split.dev, split.test):
        assert not {sample.speaker for sample in split.train} & {sample.speaker for sample in held_out}
        assert not {sample.text for sample in split.train} & {sample.text for sample in held_out}
    assert len(split.test) == 20 * len(speakers) == 800


@needs_recordings
def test_the_llm_reads_nothing_that_is_tested() -> None:
    tested = {"how can i do that", "sieh dort"}
    texts = training_texts(SHARED / "text", TextSizes(), tested, said=["mark is here", "mark is here"])
    found = texts.train_sentences
    assert len(found) > 20_000 and found[-1].text == "mark is here" and found[-1].translations == {}
    read = {normalise_basic(text) for s in found for text in (s.text, *s.translations.values())}
    assert not read & tested


@needs_recordings
def test_whole_study_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[tts]"')
    torch.manual_seed(0)
    save_encoder(tiny_hubert(), tmp_path / "weights" / "encoder")
    monkeypatch.setattr("ossicle_lab.models.weights", lambda part: str(tmp_path / "weights" / part))
    speech = tmp_path / "recorded"
    for name, samples in a_few().items():
        write_manifest(speech / name / "manifest.jsonl", samples)

    record = run(speech, SHARED / "text", tmp_path / "out", scale=TINY, processes=0)

    assert record == json.loads((tmp_path / "out/study/results.json").read_text())
    assert record["cells"] == {"done": 4, "of": 4}
    assert record["columns"] == ["asr:wer", "st/de:bleu", "st/fr:bleu", "st/es:bleu"]
    assert set(record["alignment"]) == {"contr-wasser-emb"}
    parts = json.loads((tmp_path / "out/parts.json").read_text())
    assert parts["encoder"].keys() == parts["lab_encoder"].keys() == {"wer", "wer_utterance_mean"}
    corpus = RealCorpus(tmp_path / "out/data")
    test, train = read_manifest(corpus.test), read_manifest(corpus.train)
    assert {sample.target_language for sample in test if sample.task == "st"} == set(LANGUAGES)
    assert not {sample.speaker for sample in test} & {sample.speaker for sample in train}
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}

    assert run(speech, SHARED / "text", tmp_path / "out", scale=TINY, processes=0)["rows"] == record["rows"]

    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished part was run again"
    with pytest.raises(ValueError, match="holds a run of another size"):
        run(speech, SHARED / "text", tmp_path / "out", scale=replace(TINY, llm_steps=3), processes=0)


def a_few() -> dict[str, list[Sample]]:
    """Return three short utterances of each of five speakers, two of whom also have one with all translations."""
    recordings = read_manifest(RECORDED / TRAIN / "manifest.jsonl")
    rich = [s for s in read_manifest(RECORDED / TRANSLATED / "manifest.jsonl") if s.extra.get("translations")]
    translated = [s for s in rich if set(LANGUAGES) <= s.extra["translations"].keys()][:2]
    tested = [sample.speaker or "" for sample in translated]
    others = sorted({sample.speaker or "" for sample in recordings} - {s.speaker or "" for s in rich})[:3]
    few = [
        sample
        for speaker in (*tested, *others)
        for sample in sorted((s for s in recordings if s.speaker == speaker), key=lambda s: s.duration_s or 0.0)[:3]
    ]
    known = {sample.id for sample in few}
    return {
        TRAIN: [*few, *(s for s in recordings if s.id in {t.id for t in translated} - known)],
        TRANSLATED: translated,
    }
