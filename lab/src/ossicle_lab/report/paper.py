"""The figures that the paper published, for comparison with a study on other data and other models.

Source: Züfle and Niehues (2025), MuST-C tst-COMMON and Spoken-SQuAD with Llama-3.1-8B.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table, and the row of a study with the same settings."""

    title: str
    wer: str
    comet: str
    f1: str
    normalised: str
    """Normalised average."""
    ours: tuple[str, float] | None
    """Pretraining and fraction in the study ``lab/paper_table``; None if no row has the same settings."""


PAPER = (
    PaperRow("no pretraining, 100%", "23.78", "69.72", "46.07", "−51.13", ("none", 1.0)),
    PaperRow("ASR pretraining, 10%", "12.21", "75.70", "63.36", "39.93", ("asr", 0.1)),
    PaperRow("contr-wasser-all, 10%", "12.92", "80.52", "77.22", "84.96", ("contr-wasser-all", 0.1)),
    PaperRow("contr-cos-all + GigaSpeech, 10%", "10.94", "81.21", "79.12", "97.12", ("contr-wasser-all-2x", 0.1)),
    PaperRow("best single figures", "9.31", "–", "EM 76.11", "114.18", None),
)
