"""Make the manifests of a real run from recordings and texts. Recordings stay where they are and are not copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ossicle.batch import Sample
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.files import write_json
from ossicle_lab.real.recordings import Split, split_recordings, words_of
from ossicle_lab.real.speeds import write_speeds
from ossicle_lab.real.tasks import questions, recognition, recognition_test, unseen
from ossicle_lab.real.voices import Kind, draw_passages, draw_sentences, draw_translations, speak

SUMMARY = "corpus.json"
TRANSLATED = "es"
"""Language of the translation test."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the corpus. All training recordings are used."""

    sentences: int = 8000
    """Number of sentences in generated voices for stage 1; 0 for none."""
    speeds: tuple[float, ...] = (0.9, 1.1)
    """Speeds of further copies of the training recordings for stage 1."""
    passages: int = 600
    """Largest number of passages in generated voices with questions for stage 2; 0 for none, in the test too."""
    questions: int = 3000
    """Number of questions about recorded training sentences."""
    test_passages: int = 80
    """Largest number of test passages in generated voices."""
    test_questions: int = 120
    """Number of questions about recorded test sentences."""
    unseen: int = 48
    """Number of test lines of each unseen instruction."""
    translations: int = 48
    """Number of test sentences in generated voices that are translated."""


@dataclass(frozen=True)
class Corpus:
    """Paths of the manifests in a folder."""

    folder: Path

    @property
    def train(self) -> Path:
        """Return the manifest of the training recordings, with transcripts."""
        return self.folder / "train.jsonl"

    @property
    def tts(self) -> Path:
        """Return the manifest of sentences in generated voices. It does not exist if there are none."""
        return self.folder / "tts.jsonl"

    @property
    def speeds(self) -> Path:
        """Return the manifest of the training recordings at other speeds. It does not exist if there are none."""
        return self.folder / "speeds.jsonl"

    @property
    def dev(self) -> Path:
        """Return the manifest of the development recordings, with transcripts."""
        return self.folder / "dev.jsonl"

    @property
    def finetune(self) -> Path:
        """Return the manifest of stage 2: recognition of all training recordings, and questions."""
        return self.folder / "finetune.jsonl"

    @property
    def recognition_tests(self) -> list[Path]:
        """Return the recognition tests, one for each test set that the split has."""
        found = sorted(self.folder.glob("test-*.jsonl"))
        return [path for path in found if path not in (self.questions_test, self.unseen_test)]

    @property
    def questions_test(self) -> Path:
        """Return the test of questions: about test passages in test voices, and about recorded test sentences."""
        return self.folder / "test-qa.jsonl"

    @property
    def unseen_test(self) -> Path:
        """Return the test of instructions that are never trained from speech, on recordings of test speakers."""
        return self.folder / "test-unseen.jsonl"

    @property
    def stage1(self) -> list[Path]:
        """Return the manifests of stage 1."""
        return [path for path in (self.train, self.speeds, self.tts) if path.is_file()]


def make_corpus(recordings: Path, folder: Path, sizes: Sizes | None = None, *, jobs: int | None = None) -> Corpus:
    """Split the recordings by speaker, speak texts, and write the manifests to ``folder``. A second call continues.

    Args:
        recordings: folder with ``real_speech/CORPUS/manifest.jsonl``, or directly ``CORPUS/manifest.jsonl``. If it has
            a folder ``text`` with ``parallel`` and ``qa``, texts of it are spoken.
        folder: output folder.
        sizes: sizes of the corpus.
        jobs: number of processes of espeak-ng; None for one per core.

    Raises:
        DataError: the recordings cannot be split, or a file of texts is missing.
        VoiceError: texts are to be spoken and espeak-ng is not installed.
    """
    sizes, corpus = sizes or Sizes(), Corpus(folder)
    split = split_recordings(recordings.resolve())
    heard = [sample for samples in split.tests.values() for sample in samples]
    write_manifest(corpus.train, split.train)
    write_manifest(corpus.dev, split.dev)
    if sizes.speeds:
        write_manifest(corpus.speeds, write_speeds(corpus.train, folder / "speeds", sizes.speeds, jobs=jobs))
    for name, samples in split.tests.items():
        write_manifest(folder / f"test-{name}.jsonl", recognition_test(samples))
    train_tasks = [*recognition(split.train), *questions(split.train, sizes.questions)]
    test_tasks = questions(heard, sizes.test_questions, seed=1)
    unseen_tasks = unseen(heard, sizes.unseen)
    texts = recordings.resolve() / "text"
    if texts.is_dir():
        if sizes.sentences:
            _speak_sentences(texts, corpus, sizes, split, jobs)
        if sizes.passages:
            train_tasks += _passages(texts, folder, "train", sizes.passages, jobs)
            test_tasks += _passages(texts, folder, "test", sizes.test_passages, jobs)
        if sizes.translations:
            unseen_tasks += _translations(texts, folder, sizes.translations, jobs)
    write_manifest(corpus.finetune, train_tasks)
    write_manifest(corpus.questions_test, test_tasks)
    write_manifest(corpus.unseen_test, unseen_tasks)
    write_json(folder / SUMMARY, {path.name: summary(read_manifest(path)) for path in sorted(folder.glob("*.jsonl"))})
    return corpus


def summary(samples: Sequence[Sample]) -> dict[str, object]:
    """Return the number of lines by task, and the hours, speakers and licences of the recordings of ``samples``."""
    recordings = {(sample.audio, sample.start_s): sample for sample in samples}.values()
    return {
        "lines": dict(Counter(sample.task or "transcript" for sample in samples)),
        "recordings": len(recordings),
        "hours": round(sum(sample.duration_s or 0.0 for sample in recordings) / 3600, 3),
        "speakers": len({sample.speaker for sample in recordings if sample.speaker}),
        "licences": dict(Counter(str(sample.extra.get("license", "not stated")) for sample in recordings)),
    }


def _speak_sentences(texts: Path, corpus: Corpus, sizes: Sizes, split: Split, jobs: int | None) -> None:
    translated = draw_translations(texts, TRANSLATED, sizes.translations) if sizes.translations else []
    tested = split.tested | {words_of(line["en"]) for line in translated}
    lines = draw_sentences(texts, sizes.sentences, tested)
    spoken = speak(corpus.folder, "sentences", lines, "train", jobs=jobs)
    found = _generated(read_manifest(spoken / "sentences.jsonl"))
    write_manifest(corpus.tts, [replace(sample, task=None, instruction=None, answers=()) for sample in found])


def _passages(texts: Path, folder: Path, kind: Kind, count: int, jobs: int | None) -> list[Sample]:
    """Speak passages and return their questions; for training, their transcripts too."""
    name = f"passages-{kind}"
    spoken = speak(folder, name, draw_passages(texts, kind, count), kind, jobs=jobs)
    asked = _generated(read_manifest(spoken / f"{name}.qa.jsonl"))
    said = _generated(read_manifest(spoken / f"{name}.jsonl")) if kind == "train" else []
    return [*recognition(said), *asked]


def _translations(texts: Path, folder: Path, count: int, jobs: int | None) -> list[Sample]:
    """Speak test sentences in test voices and return their translations."""
    name = "translations-test"
    spoken = speak(folder, name, draw_translations(texts, TRANSLATED, count), "test", jobs=jobs)
    return _generated(read_manifest(spoken / f"{name}.st-{TRANSLATED}.jsonl"))


def _generated(samples: Iterable[Sample]) -> list[Sample]:
    """Return ``samples`` without the word times, which no step of a real run reads."""
    plain = {"license": "generated by espeak-ng"}
    return [replace(sample, extra={"gender": sample.extra.get("gender"), **plain}) for sample in samples]
