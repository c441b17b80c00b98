from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.lab.ctc import save_encoder
from ossicle.lab.real import Scale, run, table
from ossicle.lab.real_corpus import CORPUS, SPELLABLE, RealCorpus, Sizes, read_corpus, split_by_speaker
from ossicle.lab.tiny_hubert import tiny_hubert
from ossicle.testing import tiny_llm

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "real_speech"
needs_recordings = pytest.mark.skipif(not (RECORDED / CORPUS).is_dir(), reason=f"no recorded speech in {RECORDED}")
TINY = Scale(
    sizes=Sizes(test_speakers=2, dev_speakers=1, test_utterances=4, candidates=6, generated=4, strings=4),
    encoder_steps=2,
    encoder_batch_s=12.0,
    stage1_steps=2,
    stage2_steps=2,
)


def said(speaker: str, text: str) -> Sample:
    return Sample(id=f"{speaker} {text}", audio=Path("x.wav"), text=text, speaker=speaker)


def test_split_shares_neither_speakers_nor_sentences() -> None:
    samples = [said(speaker, text) for speaker in "abcdefgh" for text in ("hello", f"{speaker} is here")]
    split = split_by_speaker(samples, Sizes(test_speakers=2, dev_speakers=1))
    parts = (split.train, split.dev, split.test)
    speakers = [{sample.speaker for sample in part} for part in parts]
    assert [len(names) for names in speakers] == [5, 1, 2]
    assert len(set.union(*speakers)) == 8
    assert sorted(sample.text or "" for sample in split.train) == sorted(f"{name} is here" for name in speakers[0])


def test_split_is_seeded() -> None:
    samples = [said(speaker, "hello") for speaker in "abcdefgh"]
    sizes = Sizes(test_speakers=2, dev_speakers=1)
    first, again, other = (split_by_speaker(samples, sizes, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_too_few_speakers() -> None:
    with pytest.raises(ValueError, match="1 speakers are too few to keep 33"):
        split_by_speaker([said("a", "hello")], Sizes())


def test_texts_are_made_to_fit_or_left_out(tmp_path: Path) -> None:
    lines = [
        {"id": "1", "audio": "1.wav", "speaker": "a", "text": "IT'S FINE, ISN'T IT?"},
        {"id": "2", "audio": "2.wav", "speaker": "a", "text": "42"},
        {"id": "3", "audio": "3.wav", "speaker": None, "text": "HELLO"},
        {"id": "4", "audio": "4.wav", "speaker": "a", "text": None},
    ]
    (tmp_path / CORPUS).mkdir()
    (tmp_path / CORPUS / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [sample.text for sample in read_corpus(tmp_path)] == ["it's fine isn't it"]


def test_folder_without_the_corpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has no {CORPUS}/manifest.jsonl; give the folder"):
        read_corpus(tmp_path)


@needs_recordings
def test_recordings_keep_the_convention_and_the_promise() -> None:
    samples = read_corpus(RECORDED)
    assert len(samples) == 4400
    assert all(SPELLABLE.fullmatch(sample.text or "") for sample in samples)
    split = split_by_speaker(samples, Sizes())
    for held_out in (split.dev, split.test):
        assert not {sample.speaker for sample in split.train} & {sample.speaker for sample in held_out}
        assert not {sample.text for sample in split.train} & {sample.text for sample in held_out}
    assert len(split.test) == 500


@needs_recordings
def test_whole_run_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_encoder(tiny_hubert(), tmp_path / "weights" / "encoder")
    tiny_llm(tmp_path / "weights" / "llm")
    monkeypatch.setattr("ossicle.models.frozen.LAB_WEIGHTS", tmp_path / "weights")
    source = tmp_path / "recorded"
    write_manifest(source / CORPUS / "manifest.jsonl", a_few(read_manifest(RECORDED / CORPUS / "manifest.jsonl")))

    record = run(source, tmp_path / "out", scale=TINY, processes=0)

    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
    assert set(record["encoders"]) == {"lab", "recorded"}
    for figures in record["encoders"].values():
        assert (
            [row["layer"] for row in figures["untrained"]] == [row["layer"] for row in figures["stage1"]] == [0, 1, 2]
        )
        assert figures["asr"].keys() == figures["ctc"].keys() == {"wer", "wer_utterance_mean"}
    corpus = RealCorpus(tmp_path / "out" / "data")
    assert len({sample.text for sample in read_manifest(corpus.candidates)}) == 6
    assert {sample.instruction for sample in read_manifest(corpus.test)} == {"repeat the text"}
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/stage?/projector.safetensors")}
    assert len(weights) == 4

    again = run(source, tmp_path / "out", scale=TINY, processes=0)

    assert {path: path.stat().st_mtime_ns for path in weights} == weights, "a finished part was run again"
    assert again["encoders"] == record["encoders"]
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(record))
    assert "trained further on recordings" in shown.get()
    assert "stage 1, layer 2" in shown.get()
    with pytest.raises(ValueError, match="holds a run of another size"):
        run(source, tmp_path / "out", scale=replace(TINY, stage1_steps=3), processes=0)


def a_few(samples: list[Sample]) -> list[Sample]:
    """Three short utterances of five speakers."""
    speakers = sorted({sample.speaker or "" for sample in samples})[:5]
    return [
        sample
        for speaker in speakers
        for sample in sorted((s for s in samples if s.speaker == speaker), key=lambda s: s.duration_s or 0.0)[:3]
    ]
