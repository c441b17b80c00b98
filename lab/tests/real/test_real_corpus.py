"""The split of recordings, the lines of stage 2 and its tests, and texts in generated voices."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ossicle.audio import SAMPLE_RATE_HZ, audio_duration_s, read_audio
from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import DataError
from ossicle.prompts import ASR_INSTRUCTIONS
from ossicle.testing import tiny_manifest
from ossicle_lab.real import recordings
from ossicle_lab.real.augmented import Perturbation, Speed, in_room, resonance, with_noise, write_copies
from ossicle_lab.real.corpus import Corpus, Sizes, make_corpus
from ossicle_lab.real.recordings import split_recordings, words_of
from ossicle_lab.real.tasks import QUESTIONS, UNSEEN, questions, recognition, unseen
from ossicle_lab.real.voices import draw_passages, draw_sentences, draw_translations, sentence_at
from places import CORE_RECIPES, LAB_RECIPES, SHARED

SOURCE = SHARED / "data"
needs_recordings = pytest.mark.skipif(not (SOURCE / "real_speech").is_dir(), reason=f"no recordings in {SOURCE}")
CONTEXT = "It rained. Ann won 6 gold medals in Rome! She left."


def said(text: str, *, speaker: str | None = "ann", number: int = 0) -> Sample:
    return Sample(id=f"s{number}", audio=Path(f"/a/{number}.wav"), text=text, language="en", speaker=speaker)


def write_corpus(folder: Path, texts: Sequence[str], speakers: Sequence[str | None]) -> None:
    lines = [said(text, speaker=who, number=i) for i, (text, who) in enumerate(zip(texts, speakers, strict=True))]
    write_manifest(folder / "manifest.jsonl", lines)


# Splitting ---------------------------------------------------------------------------------------------------------


def test_speakers_and_sentences_of_the_test_are_not_in_training(tmp_path: Path) -> None:
    everybody = [f"p{i // 4}" for i in range(48)]
    write_corpus(tmp_path / "one", [f"Sentence, number {i % 24}!" for i in range(48)], everybody)
    write_corpus(tmp_path / "two", ["nobody knows who said it"], [None])

    split = split_recordings(tmp_path)

    (test,) = split.tests.values()
    held_out = {s.speaker for s in (*test, *split.dev)}
    assert len({s.speaker for s in test}) == 1
    assert len(held_out) == 2
    assert not held_out & {s.speaker for s in split.train}
    assert not {words_of(s.text) for s in test} & {words_of(s.text) for s in split.train}
    assert split.train[-1].id == "two/s0", "a recording of an unknown speaker is for training"
    assert split == split_recordings(tmp_path)


def test_only_english_with_text_is_read_and_upper_case_is_lowered(tmp_path: Path) -> None:
    texts = ["I AM HERE", "WHERE IS ANN"]
    write_corpus(tmp_path / "upper", texts, ["a", "b"])
    lines = [said("I am Ann."), said("Ich", number=1), replace(said("x", number=2), text=None)]
    lines[1] = replace(lines[1], language="de")
    write_manifest(tmp_path / "mixed" / "manifest.jsonl", lines)
    assert [s.text for s in recordings.read_corpus(tmp_path / "upper")] == ["i am here", "where is ann"]
    assert [s.text for s in recordings.read_corpus(tmp_path / "mixed")] == ["I am Ann."]


def test_folders_that_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no English recordings with transcripts; give a folder with CORPUS/"):
        split_recordings(tmp_path)
    write_corpus(tmp_path / "few", ["a b", "c d"], ["a", "b"])
    with pytest.raises(DataError, match="2 known speakers are too few for a split"):
        split_recordings(tmp_path)
    write_corpus(tmp_path / "few", ["same"] * 9, [f"p{i}" for i in range(9)])
    with pytest.raises(DataError, match="all training sentences are also said by test speakers"):
        split_recordings(tmp_path)


@needs_recordings
def test_the_split_of_the_named_corpora_is_fixed() -> None:
    split = split_recordings(SOURCE)
    assert (len(split.train), len(split.dev)) == (5525, 160)
    assert {name: len(samples) for name, samples in split.tests.items()} == {"librispeech": 68, "speechocean": 300}
    speechocean = split.tests["speechocean"]
    held_out = {s.speaker for s in (*speechocean, *split.dev, *split.tests["librispeech"])}
    assert not held_out & {s.speaker for s in split.train}
    assert not {words_of(s.text) for s in speechocean} & {
        words_of(s.text) for s in split.train if (s.speaker or "").startswith("so762")
    }
    assert [s.id for s in speechocean[:3]] == ["so762-005750089", "so762-005750270", "so762-096250017"]


# Tasks -------------------------------------------------------------------------------------------------------------


def test_recognition_has_drawn_instructions_and_the_transcript_as_target() -> None:
    lines = recognition([said(f"Text {i}.", number=i) for i in range(40)])
    assert {line.instruction for line in lines} == set(ASR_INSTRUCTIONS)
    assert all(line.task == "asr" and line.answers == (line.text,) for line in lines)


def test_questions_follow_from_the_sentence() -> None:
    samples = [said(f"The {a} dog saw a {b} cat", number=i) for i, (a, b) in enumerate([("brown", "small")] * 60)]
    samples += [said("Too short", number=98), said("The 20 dogs saw a cat", number=99)]
    asked = questions(samples, 240)
    assert len(asked) == len({line.id for line in asked}) == 240
    kinds = {kind: [line for line in asked if line.id.endswith(f"-{kind}")] for kind in QUESTIONS}
    assert {kind: len(lines) for kind, lines in kinds.items()} == dict.fromkeys(QUESTIONS, 60)
    words = words_of(samples[0].text).split()
    for line in kinds["next"]:
        assert line.instruction is not None
        word = line.instruction.split('"')[1]
        assert line.answers == (words[words.index(word) + 1],)
    assert {line.answers for line in kinds["first"]} == {("the",)}
    assert {line.answers for line in kinds["last"]} == {("cat",)}
    assert len(questions(samples, 10_000)) == 240, "no sentence is asked twice for the same kind"


def test_yes_and_no_are_balanced_and_true() -> None:
    sentences = ["brown dogs like green grass", "small cats drink fresh milk"]
    samples = [said(sentences[i % 2], number=i) for i in range(400)]
    asked = [line for line in questions(samples, 1600) if line.id.endswith("-heard")]
    for line in asked:
        assert line.instruction is not None and line.text is not None
        word = line.instruction.split('"')[1]
        assert line.answers == (("Yes",) if word in line.text.split() else ("No",))
    share = sum(line.answers == ("Yes",) for line in asked) / len(asked)
    assert 0.4 < share < 0.85


def test_unseen_instructions_have_the_answer_of_their_rule() -> None:
    lines = unseen([said("She saw Ann's dog.")], 5)
    answers = {line.task: line.answers[0] for line in lines}
    assert answers == {"capitals": "SHE SAW ANN'S DOG.", "count": "4"}
    trained = {line.instruction for line in questions([said("She saw Ann's dog.")], 4)} | set(ASR_INSTRUCTIONS)
    assert not trained & {instruction for instruction, _ in UNSEEN.values()}


# Texts -------------------------------------------------------------------------------------------------------------


def write_texts(folder: Path) -> None:
    def write(name: str, lines: list[dict[str, object]]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for code in ("de", "fr", "es"):
        lines = [{"id": f"t-{code}-{i}", "en": f"He saw {code} dog {'x' * (i + 1)}.", code: "y"} for i in range(6)]
        write(f"parallel/tatoeba_en-{code}.jsonl", [*lines, {"id": f"t-{code}", "en": "No.", code: "Nein."}])
    dogs = [{"id": f"m-{i}", "en": f"A dog runs {'y' * (i + 1)}."} for i in range(6)]
    write("parallel/multi30k_en-de-fr-cs.train.jsonl", dogs)
    about = {"context": CONTEXT, "answer": "Rome", "answers": ["Rome", "It"], "answer_start": CONTEXT.index("Rome")}
    asked = [{"id": f"q{i}", "title": f"Article {i % 4}", "question": f"Where? {i}", **about} for i in range(8)]
    write("qa/xquad_en.jsonl", asked)


def test_spoken_sentences_leave_out_tested_ones(tmp_path: Path) -> None:
    write_texts(tmp_path)
    tested = {words_of("A dog runs y."), words_of("He saw de dog x.")}
    drawn = draw_sentences(tmp_path, 100, tested)
    assert len(drawn) == len({line["id"] for line in drawn}) == 17 + 5
    assert not tested & {words_of(line["en"]) for line in drawn}
    assert len(draw_sentences(tmp_path, 7, tested)) == 7
    assert all(set(line) == {"id", "en", "es"} for line in draw_translations(tmp_path, "es", 3))


def test_passages_are_split_by_article_and_hold_their_answers(tmp_path: Path) -> None:
    assert sentence_at(CONTEXT, 0) == "It rained."
    assert sentence_at(CONTEXT, CONTEXT.index("left")) == "She left."
    write_texts(tmp_path)
    train, test = (draw_passages(tmp_path, kind, 100) for kind in ("train", "test"))
    assert sorted([*(q["id"] for q in train), *(q["id"] for q in test)]) == [f"q{i}" for i in range(8)]
    titles = [{int(q["id"][1:]) % 4 for q in part} for part in (train, test)]
    assert not titles[0] & titles[1]
    assert all(q["context"] == "Ann won 6 gold medals in Rome!" and q["answers"] == ["Rome"] for q in train)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"xquad_en.jsonl: there is no such file; give the folder of texts"):
        draw_passages(tmp_path, "train", 1)


def test_whole_corpus_in_generated_voices(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason='needs pip install "ossicle[tts]"')
    recorded = tmp_path / "in"
    speakers(recorded / "real_speech" / "tones", 8)
    write_texts(recorded / "text")
    spoken = {"sentences": 4, "natural": 0, "passages": 2, "test_passages": 1, "translations": 2}
    sizes = Sizes(questions=6, test_questions=3, unseen=2, **spoken)

    corpus = make_corpus(recorded, tmp_path / "out", sizes, jobs=1)

    lines = {path.stem: read_manifest(path) for path in corpus.folder.glob("*.jsonl")}
    assert set(lines) == {"train", "dev", "copies", "tts", "finetune", "test-recordings", "test-qa", "test-unseen"}
    assert corpus.recognition_tests == [corpus.folder / "test-recordings.jsonl"]
    assert corpus.stage1 == [corpus.train, corpus.copies, corpus.tts]
    assert len(lines["tts"]) == 4
    assert {s.audio.is_file() for part in lines.values() for s in part} == {True}
    assert {s.audio.parent for s in lines["train"]} == {(recorded / "real_speech" / "tones").resolve()}
    voices = {name: {s.speaker for s in lines[name]} for name in ("tts", "finetune", "test-qa", "test-unseen")}
    assert not (voices["tts"] | voices["finetune"]) & (voices["test-qa"] | voices["test-unseen"])
    assert {s.task for s in lines["finetune"]} == {"asr", "qa", "qa-words"}
    assert {s.task for s in lines["test-unseen"]} == {"st", *UNSEEN}
    summary = json.loads((corpus.folder / "corpus.json").read_text())
    assert summary["train.jsonl"]["lines"] == {"transcript": len(lines["train"])}
    content = {path: path.read_bytes() for path in corpus.folder.rglob("*.jsonl")}
    make_corpus(recorded, tmp_path / "out", sizes, jobs=1)
    assert content == {path: path.read_bytes() for path in content}, "a second call changes nothing"


@pytest.mark.parametrize(
    "path", sorted([*CORE_RECIPES.glob("real/*.yaml"), *LAB_RECIPES.glob("real/*.yaml")]), ids=lambda path: path.stem
)
def test_recipes_name_only_manifests_that_a_real_run_writes(path: Path) -> None:
    made = Corpus(Path("runs/real/data"))
    written = {made.train, made.copies, made.tts, made.natural, made.dev, made.finetune}
    written |= {made.questions_test, made.unseen_test}
    written |= {made.folder / f"test-{name}.jsonl" for name in ("librispeech", "speechocean")}
    named = re.findall(r"runs/real/data/[\w-]+\.jsonl", path.read_text(encoding="utf-8"))
    assert set(map(Path, named)) <= written


def test_a_recognition_test_can_be_smaller(tmp_path: Path) -> None:
    speakers(tmp_path / "in" / "tones", 8)
    sizes = Sizes(questions=6, test_questions=3, unseen=2)
    whole, few, again = (
        make_corpus(tmp_path / "in", tmp_path / name, replace(sizes, test_recordings=most), jobs=1)
        for name, most in (("whole", 300), ("few", 2), ("again", 2))
    )
    ids = [[line.id for line in read_manifest(corpus.recognition_tests[0])] for corpus in (whole, few, again)]
    assert len(ids[0]) > 2 == len(ids[1])
    assert set(ids[1]) < set(ids[0])
    assert ids[1] == ids[2]


def test_copies_at_other_speeds_last_as_long_as_the_speed_says(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path / "in", 3)
    originals = read_manifest(manifest)

    copies = write_copies(manifest, tmp_path / "out", [Speed(0.5), Speed(2.0)], jobs=1)

    assert [copy.id for copy in copies] == [f"{sample.id}@{speed:g}" for speed in (0.5, 2.0) for sample in originals]
    assert [copy.text for copy in copies] == 2 * [sample.text for sample in originals]
    for copy, sample in zip(copies, 2 * originals, strict=True):
        speed = float(copy.id.partition("@")[2])
        expected = audio_duration_s(sample.audio) / speed
        assert copy.duration_s == pytest.approx(expected, abs=0.001) == pytest.approx(audio_duration_s(copy.audio))
    kept = {copy.audio: copy.audio.stat().st_mtime_ns for copy in copies}
    assert write_copies(manifest, tmp_path / "out", [Speed(0.5), Speed(2.0)], jobs=1) == copies
    assert kept == {path: path.stat().st_mtime_ns for path in kept}, "a second call writes nothing"


def test_copies_of_a_longer_manifest_are_of_their_own_recordings(tmp_path: Path) -> None:
    changes = [Speed(2.0), Perturbation(0)]
    manifest = tiny_manifest(tmp_path / "in", 4)
    samples = read_manifest(manifest)
    write_manifest(tmp_path / "later.jsonl", samples[1:])
    write_copies(tmp_path / "later.jsonl", tmp_path / "out", changes, jobs=1)

    copies = write_copies(manifest, tmp_path / "out", changes, jobs=1)

    fresh = write_copies(manifest, tmp_path / "fresh", changes, jobs=1)
    assert [copy.audio.read_bytes() for copy in copies] == [copy.audio.read_bytes() for copy in fresh]


def test_perturbed_copies_differ_in_speed_level_and_noise_and_are_the_same_every_time(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path / "in", 12)
    changes = [Perturbation(0), Perturbation(1)]

    copies = write_copies(manifest, tmp_path / "out", changes, jobs=1)

    originals = read_manifest(manifest)
    assert [copy.id for copy in copies] == [f"{s.id}@{change.name}" for change in changes for s in originals]
    rates = [audio_duration_s(s.audio) / (c.duration_s or 0) for c, s in zip(copies, 2 * originals, strict=True)]
    assert 0.81 < min(rates) < 0.95 < 1.05 < max(rates) < 1.19
    peaks = [float(abs(read_audio(copy.audio)).max()) for copy in copies]
    assert 0.14 < min(peaks) < 0.4 < 0.6 < max(peaks) < 0.91
    again = write_copies(manifest, tmp_path / "again", changes, jobs=1)
    assert [c.audio.read_bytes() for c in again] == [c.audio.read_bytes() for c in copies]


def test_a_resonance_changes_its_own_frequency_alone() -> None:
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    low, high = (np.sin(2 * np.pi * hertz * time_s) for hertz in (200.0, 3200.0))

    changed = resonance(low + high, 200.0, 12.0, width=0.5)

    inside = slice(1000, -1000)  # a tone that begins or ends has further frequencies
    assert changed[inside] == pytest.approx((10 ** (12 / 20) * low + high)[inside], abs=0.01)


def test_the_end_of_a_recording_does_not_come_back_at_its_beginning() -> None:
    click = np.zeros(SAMPLE_RATE_HZ)
    click[-5] = 1.0

    changed = resonance(click, 1000.0, 12.0, width=0.5)

    assert changed[-5] > 1.0
    assert np.abs(changed[:100]).max() < 1e-3


def test_noise_has_the_distance_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle_lab.real.augmented.NOISE_DB", (20.0, 20.0))
    tone = np.sin(np.arange(SAMPLE_RATE_HZ) / 7)

    noise = with_noise(tone, np.random.default_rng(0)) - tone

    assert 20 * np.log10(np.linalg.norm(tone) / np.linalg.norm(noise)) == pytest.approx(20.0, abs=1e-6)


def test_a_room_keeps_the_sound_and_adds_an_echo_that_ends() -> None:
    click = np.zeros(SAMPLE_RATE_HZ)
    click[100] = 1.0

    heard = in_room(click, np.random.default_rng(0))

    assert heard[100] == pytest.approx(1.0)
    assert np.abs(heard[:100]).max() < 1e-9
    assert np.abs(heard[101:1300]).max() > 0.001
    assert np.abs(heard[100 + int(0.46 * SAMPLE_RATE_HZ) :]).max() < 1e-9


def speakers(folder: Path, count: int) -> None:
    """Write four utterances of tones by each of ``count`` speakers, with different sentences of six words or more."""
    samples = read_manifest(tiny_manifest(folder, 4 * count))
    words = [f"{a}able" for a in "bcdfghkst"]
    rng = random.Random(0)
    spoken = [
        replace(sample, text=f"{sample.text} {' '.join(rng.sample(words, 4))} end", speaker=f"p{i // 4}")
        for i, sample in enumerate(samples)
    ]
    write_manifest(folder / "manifest.jsonl", spoken)
