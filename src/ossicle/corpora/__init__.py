"""List the corpora that `ossicle prepare` can read.

Each has a module here with one function ``read(source, options)``, which yields the items of the corpus. This file
imports nothing heavy because ``ossicle --help`` prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass

DESCRIPTION_ATTRIBUTES = (
    "speaking_rate",
    "gender",
    "noise",
    "reverberation",
    "speech_monotony",
    "sdr_noise",
    "pesq_speech_quality",
)
"""Attributes of a recording in the answers of the task ``meta``, in their order. `ossicle.corpora.mls_descriptions`
writes these answers, and `ossicle.evaluate.meta` scores them."""


@dataclass(frozen=True)
class Corpus:
    """Name of the module, help text, layout and options of a corpus."""

    module: str
    """Name of the module in this package."""
    help: str
    """One line for the help page."""
    layout: str
    """The files that SOURCE must contain, for error messages."""
    options: frozenset[str] = frozenset()
    """Fields of `ossicle.corpora.items.Options` that this corpus supports in addition to those that all support."""


def _corpus(module: str, help_line: str, layout: str, *options: str) -> Corpus:
    return Corpus(module, help_line, layout, frozenset(options))


CORPORA: dict[str, Corpus] = {
    "mustc": _corpus(
        "mustc",
        "MuST-C v1: English talks, 8 translations (asr, st).",
        "en-de/data/train/{txt/train.yaml, txt/train.en, txt/train.de, wav/ted_1.wav}; splits dev, tst-COMMON, tst-HE",
        "splits",
        "targets",
        "tasks",
    ),
    "gigaspeech": _corpus(
        "gigaspeech",
        "GigaSpeech XS S M L XL DEV TEST: English, varied (asr).",
        "GigaSpeech.json and audio/{audiobook,podcast,youtube}/P0001/AUD0000000001.opus",
        "subsets",
    ),
    "spoken-squad": _corpus(
        "spoken_squad",
        "Spoken-SQuAD: questions about spoken passages (qa).",
        "spoken_train-v1.1.json with train_wav/0_0_0.wav, spoken_test-v1.1.json with dev_wav/0_0_0.wav "
        "(ARTICLE_PARAGRAPH_SENTENCE.wav; both folders may be in Spoken-SQuAD_audio)",
        "splits",
    ),
    "mls-descriptions": _corpus(
        "mls_descriptions",
        "MLS speaker descriptions: seven attributes (meta).",
        "parquet files with an audio column and speaking_rate, gender, noise, reverberation, speech_monotony, "
        "sdr_noise, pesq_speech_quality; or without audio, and --audio FOLDER with the parquet files of mls_eng",
        "splits",
        "audio",
        "columns",
    ),
    "librispeech": _corpus(
        "librispeech",
        "LibriSpeech: read English (asr).",
        "train-clean-100/19/198/{19-198.trans.txt, 19-198-0000.flac}",
        "splits",
    ),
    "mls": _corpus(
        "mls",
        "Multilingual LibriSpeech: read, 8 languages (asr).",
        "mls_german/train/{transcripts.txt, audio/SPEAKER/BOOK/SPEAKER_BOOK_000000.flac}",
        "splits",
        "language",
    ),
    "common-voice": _corpus(
        "common_voice",
        "Common Voice: read sentences in many languages (asr).",
        "de/{train.tsv, dev.tsv, test.tsv, clips/common_voice_de_1.mp3}",
        "splits",
        "language",
    ),
    "covost": _corpus(
        "covost",
        "CoVoST 2: translations of Common Voice 4 (asr, st).",
        "a Common Voice folder (validated.tsv, clips/) that also holds covost_v2.en_de.tsv, or the split files "
        "covost_v2.en_de.train.tsv",
        "splits",
        "language",
        "targets",
        "tasks",
    ),
    "europarl-st": _corpus(
        "europarl_st",
        "Europarl-ST: speeches in 9 languages (asr, st).",
        "en/{audios/en.20080901.22.1-097.wav, de/train/{segments.lst, segments.en, segments.de}} "
        "(the .m4a files of the corpus, converted)",
        "splits",
        "language",
        "targets",
        "tasks",
    ),
    "fleurs": _corpus(
        "fleurs",
        "FLEURS: read sentences in 102 languages (asr, st).",
        "en_us/{train.tsv, dev.tsv, test.tsv, audio/train/1234567.wav}",
        "splits",
        "language",
        "targets",
        "tasks",
    ),
    "parquet": _corpus(
        "parquet",
        "Any parquet files with an audio column; see --column.",
        "a parquet file, or a folder of parquet files, with a column of {bytes, path}",
        "splits",
        "language",
        "targets",
        "tasks",
        "columns",
    ),
    "lhotse": _corpus(
        "lhotse",
        "Lhotse cuts or Shar: MonoCut with supervisions (asr).",
        "cuts.jsonl or cuts.jsonl.gz, or a folder of such files; audio paths are relative to it. Shar has "
        "recording.000000.tar beside cuts.000000.jsonl.gz",
        "language",
    ),
    "webdataset": _corpus(
        "webdataset",
        "Tar shards with audio, .txt and .json; see --column.",
        "a .tar file, or a folder of tar files such as train-000000.tar, with a.flac, a.txt and a.json in it",
        "splits",
        "language",
        "targets",
        "tasks",
        "columns",
    ),
    "jsonl": _corpus(
        "jsonl",
        "Manifests of NeMo and SLAM-LLM; see --column.",
        "a .jsonl or .json file with one object per line, or a folder of such files",
        "language",
        "targets",
        "tasks",
        "columns",
    ),
    "folder": _corpus(
        "folder",
        "Recordings, each with a .txt file of the same name (asr).",
        "a.wav and a.txt, at any depth; WAV, FLAC, MP3, OGG or Opus",
        "language",
    ),
}
