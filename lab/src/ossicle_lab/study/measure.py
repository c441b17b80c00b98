"""Measure a projector: scores on task lines and alignment by layer, with encoder frames from the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ossicle.batch import Batch, Sample
from ossicle.data.collate import Collator
from ossicle.data.dataset import SpeechDataset
from ossicle.data.manifest import read_manifest
from ossicle.evaluate.decode import decode
from ossicle.evaluate.hypotheses import Key
from ossicle.evaluate.references import hypothesis_of
from ossicle.evaluate.score import score, write_scores
from ossicle.inspect.alignment import alignment_report, similarity_matrix
from ossicle.inspect.states import KeptStates, PooledStates, encoded, pooled_states
from ossicle.models.frozen import fingerprint
from ossicle.models.speech_llm import SpeechLLM
from ossicle.train.cache import CachedDataset, FrameCache
from ossicle.train.tracking import spread

ALIGNMENT_BATCH = 50
LAYERS_SHOWN = 3
Dataset = SpeechDataset | CachedDataset


def cached(manifests: Sequence[str | Path], model: SpeechLLM, cache: Path) -> Dataset:
    """Return the utterances of ``manifests`` with frames from ``cache``, to which missing frames are added.

    If a part of the encoder is trained, frames cannot be cached and the utterances are waveforms.
    """
    samples = [sample for path in manifests for sample in read_manifest(path)]
    dataset = SpeechDataset(samples, max_duration_s=float("inf"))
    if model.encoder.trains:
        return dataset
    frames = FrameCache(cache, model.encoder)
    frames.fill(dataset, model.llm.model.device)
    return CachedDataset(dataset, frames)


def fill_frames(samples: Iterable[Sample], model: SpeechLLM, cache: Path) -> None:
    """Add the missing frames of ``samples`` to ``cache``, each stretch of audio once.

    Do nothing if a part of the encoder is trained.
    """
    if model.encoder.trains:
        return
    unique = list({(sample.audio, sample.start_s, sample.end_s): sample for sample in samples}.values())
    dataset = SpeechDataset(unique, max_duration_s=float("inf"))
    FrameCache(cache, model.encoder).fill(dataset, model.llm.model.device)


def test_sets(manifests: Sequence[str]) -> dict[Key, str]:
    """Return the test set of each line, which is the name of its manifest without ``.jsonl``, by the line's key."""
    return {hypothesis_of(sample).key: Path(path).stem for path in manifests for sample in read_manifest(path)}


def decode_and_score(
    model: SpeechLLM,
    dataset: Dataset,
    out: Path,
    *,
    from_text: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 80,
) -> list[dict[str, Any]]:
    """Decode ``dataset`` into ``out``, score it and return the rows of the score file. A killed call is continued."""
    collate = Collator(model.prompter())
    device = model.llm.model.device
    decode(
        model,
        dataset,
        lambda items: collate(items).to(device),
        out,
        fingerprint="text" if from_text else fingerprint(model.projector),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        from_text=from_text,
    )
    rows = score(out)
    write_scores(out, rows)
    return [asdict(row) for row in rows]


def align(model: SpeechLLM, dataset: Dataset, matrices: Path | None = None) -> list[dict[str, Any]]:
    """Return the alignment of each layer; values that cannot be computed are None.

    If ``matrices`` is given, write the similarity matrices (layers, N, N) to this ``.npy`` file.
    """
    states = _states(model, dataset)
    if matrices is not None:
        import numpy as np
        import torch

        similarities = [similarity_matrix(states.speech[layer], states.text[layer]) for layer in sorted(states.text)]
        np.save(matrices, torch.stack(similarities).numpy())
    rows = alignment_report(states.text, states.speech, texts=states.transcripts)
    return [{name: _finite(value) for name, value in asdict(row).items()} for row in rows]


def token_plans(model: SpeechLLM, sample: Sample) -> dict[str, Any]:
    """Return the optimal-transport plan between the tokens of a transcript and its speech tokens, as plain values.

    ``plans`` has three layers from the first to the last: N rows (text) of M shares (speech) that sum to 1.
    """
    kept = KeptStates([sample.id], spread(list(range(model.llm.num_layers + 1)), LAYERS_SHOWN))
    batch = Collator(model.prompter())([SpeechDataset([sample], max_duration_s=float("inf"))[0]])
    pooled_states(model, encoded(model, [batch.to(model.llm.model.device)]), observers=[kept])
    plans = kept.plans(sample.id).items()
    return {
        "text": sample.text,
        "tokens": [model.llm.tokenizer.decode([token]).strip() for token in kept.tokens[sample.id]],
        "token_s": 1 / model.token_rate_hz,
        "plans": {str(layer): [[round(p, 3) for p in row] for row in plan.tolist()] for layer, plan in plans},
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _states(model: SpeechLLM, dataset: Dataset) -> PooledStates:
    collate = Collator(model.prompter())
    device = model.llm.model.device

    def batch(start: int) -> Batch:
        return collate([dataset[i] for i in range(start, min(start + ALIGNMENT_BATCH, len(dataset)))]).to(device)

    return pooled_states(model, (batch(start) for start in range(0, len(dataset), ALIGNMENT_BATCH)))
