"""Evaluate a checkpoint: decode a manifest, score the hypotheses, and print the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from ossicle.batch import Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset, subset
from ossicle.data.table import open_manifests
from ossicle.evaluate.cascade import CascadeCollator, load_recogniser
from ossicle.evaluate.decode import MAX_NEW_TOKENS, Collate, Decoder, decode, group_of
from ossicle.evaluate.honesty import CASCADE, LINES, OWN, RECOGNISER, TEXT, Honesty, honesty
from ossicle.evaluate.score import Row, ScoreOptions, check_metrics, score, write_scores
from ossicle.evaluate.tables import print_honesty, print_table
from ossicle.models.frozen import fingerprint
from ossicle.models.lora import adapters
from ossicle.models.speech_llm import SpeechLLM
from ossicle.shards import Shard


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Settings of decoding and scoring."""

    fraction: float = 1.0
    """Share of the manifest to decode, a seeded subset."""
    batch_size: int = 16
    """Utterances per batch."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Maximum length of an answer in tokens."""
    skip_broken: bool = False
    """Skip and list unreadable files instead of raising an error."""
    from_text: bool = False
    """Give the LLM the transcripts instead of the speech: the upper bound."""
    cascade: bool = False
    """Give the LLM the text that the encoder's own recogniser hears."""
    own_transcript: bool = False
    """Let the model transcribe first, and give its LLM that transcript instead of the speech."""
    speeds: tuple[float, ...] = ()
    """Further speeds at which recordings are heard for transcripts (`ossicle.models.joint.generate_jointly`)."""
    honesty_lines: int = LINES
    """About how many utterances are compared with the cascade, the text-only bound and other audio
    (`ossicle.evaluate.honesty`); 0 compares none. ``from_text``, ``cascade`` and ``own_transcript`` compare none
    either."""
    scoring: ScoreOptions = field(default_factory=ScoreOptions)
    """Settings of scoring."""


def evaluate(folder: Path, manifest: Path, out: Path, options: EvalOptions, *, shard: Shard | None = None) -> list[Row]:
    """Decode ``manifest`` into ``out`` with the checkpoint in ``folder``, score that file and print the tables.

    An interrupted call resumes. Lines of ``out`` get the references that ``manifest`` has now. Raises
    `OssicleError` if the checkpoint, the manifest or ``out`` cannot be used. With ``shard``, the call decodes every
    N-th batch; the last of the N calls writes ``out`` and scores it, and the others return nothing.
    """
    console = Console(stderr=True)
    samples = subset(open_manifests([manifest]), options.fraction)
    for warning in check_metrics((group_of(sample) for sample in samples), options.scoring):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    dataset, decoding, kind = _dataset(samples, options), _Decoding(folder, options), _kind(options)
    if shard is not None and not out.exists() and (waiting := decoding.run_part(shard, kind, dataset, out)):
        console.print(waiting, markup=False, highlight=False, soft_wrap=True)
        return []
    decoding.run(kind, dataset, out)
    if dataset.skipped:
        console.print(dataset.report())
    rows = score(out, options.scoring)
    print_table(rows)
    found: list[Honesty] = []
    if options.honesty_lines and kind == "speech":
        found = honesty(out, dataset.samples, decoding.compared, lines=options.honesty_lines, options=options.scoring)
        print_honesty(found)
    console.print(f"scores: {write_scores(out, rows, honesty=[asdict(row) for row in found])}")
    return rows


def decode_shard(shard: Shard, folder: Path, manifest: Path, out: Path, options: EvalOptions) -> None:
    """Decode ``shard`` as `evaluate` does, and score nothing. A process loads the model once for all its shards."""
    if not out.exists():
        dataset = _dataset(subset(open_manifests([manifest]), options.fraction), options)
        _load(folder, options).run_part(shard, _kind(options), dataset, out)


def _dataset(samples: Sequence[Sample], options: EvalOptions) -> SpeechDataset:
    return SpeechDataset(samples, on_error="skip" if options.skip_broken else "raise", max_duration_s=float("inf"))


def _kind(options: EvalOptions) -> str:
    return OWN if options.own_transcript else CASCADE if options.cascade else TEXT if options.from_text else "speech"


class _Decoding:
    """A checkpoint that answers from speech, from transcripts, or from the output of a recogniser."""

    def __init__(self, folder: Path, options: EvalOptions) -> None:
        self.options, self.device = options, Accelerator().device
        self.model = SpeechLLM.from_pretrained(folder, device=self.device).to(self.device)
        self.collate = Collator(self.model.prompter())
        self.source = fingerprint_of_trained(self.model)

    @cached_property
    def cascade(self) -> CascadeCollator:
        """The recogniser of the encoder. Raises `ModelError` if it has none."""
        return CascadeCollator(self.collate, load_recogniser(self.model.config.encoder))

    def run(self, kind: str, dataset: SpeechDataset, out: Path, *, replace: bool = False) -> None:
        """Decode ``dataset`` into ``out``; ``kind`` is what the LLM gets. ``replace`` is as in `decode`."""
        decode(*self._parts(kind, dataset, out), **self._settings(kind), replace=replace)

    def run_part(self, shard: Shard, kind: str, dataset: SpeechDataset, out: Path) -> str:
        """Decode a part of ``dataset``; see `ossicle.evaluate.decode_part.decode_part`."""
        from ossicle.evaluate.decode_part import decode_part

        return decode_part(shard, *self._parts(kind, dataset, out), **self._settings(kind))

    def _parts(self, kind: str, dataset: SpeechDataset, out: Path) -> tuple[Decoder, SpeechDataset, Collate, Path]:
        """Return the positional arguments of `decode`."""
        collate = self.cascade if kind in (CASCADE, RECOGNISER) else self.collate
        model: Decoder = self.cascade if kind == RECOGNISER else self.model
        return model, dataset, lambda items: collate(items).to(self.device), out

    def _settings(self, kind: str) -> dict[str, Any]:
        chosen: dict[str, Any] = {"own_transcript": True} if kind == OWN else {}
        if self.options.speeds and kind not in (OWN, CASCADE, RECOGNISER, TEXT):
            chosen["speeds"] = list(self.options.speeds)
        return chosen | {
            "fingerprint": self.cascade.recogniser.source if kind in (CASCADE, RECOGNISER) else self.source,
            "batch_size": self.options.batch_size,
            "max_new_tokens": self.options.max_new_tokens,
            "from_text": kind in (TEXT, CASCADE),
        }

    def compared(self, kind: str, samples: Sequence[Sample], out: Path) -> None:
        """Decode ``samples`` for the comparison with the model; see `ossicle.evaluate.honesty.Decode`."""
        self.run(kind, SpeechDataset(samples, on_error="skip", max_duration_s=float("inf")), out, replace=True)


@lru_cache(maxsize=1)
def _load(folder: Path, options: EvalOptions) -> _Decoding:
    return _Decoding(folder, options)


def fingerprint_of_trained(model: SpeechLLM) -> str:
    """Return a fingerprint of the projector and of all other weights of ``model`` that were trained."""
    projector = fingerprint(model.projector)
    trained = adapters(model)
    if not trained:
        return projector
    weights = torch.nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in trained.items()})
    return f"{projector}-{fingerprint(weights)}"
