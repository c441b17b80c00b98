"""Public ways to do what private interfaces do, and two such interfaces that training does not need.

The others are in `ossicle.private`. This module does not import PyTorch, because scoring does without it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Return what `ossicle.private.onednn_multiplies` does, by the instructions that PyTorch reports."""
    import torch

    cpu: Any = torch.cpu  # PyTorch gives its function no types
    flags = {name for name, present in cpu.get_capabilities().items() if present is True}
    return not flags.isdisjoint({"avx512_bw", "bf16"} if dtype == torch.bfloat16 else {"avx512_fp16", "fp16"})


def sharing_copy(model: Any) -> Any:
    """Return what `ossicle.private.shallow_copy` does, by a deep copy that keeps submodules and weights."""
    shared = [*model.children(), *model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(part): part for part in shared})


def translation_counts(metric: Any, hypotheses: list[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return the counts from which sacreBLEU's ``metric`` (BLEU, or chrF without word n-grams) is computed, (N, K).

    ``references`` are those of each hypothesis. The sums of the counts over utterances decide the score of a corpus.
    sacreBLEU keeps the function private. Where it is gone, `public_counts` replaces it.
    """
    extract = getattr(metric, "_extract_corpus_statistics", None)
    if extract is None:
        return public_counts(metric, hypotheses, references)
    most = max(map(len, references))
    # sacreBLEU expects the k-th references of all utterances together, and None for an utterance that has fewer.
    streams = [[accepted[k] if k < len(accepted) else None for accepted in references] for k in range(most)]
    counts: list[list[float]] = extract(hypotheses, streams)
    return counts


def public_counts(metric: Any, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
    """Return what `translation_counts` does, for BLEU from the scores of single utterances, for chrF by counting."""
    pairs = zip(hypotheses, references, strict=True)
    if hasattr(metric, "char_order"):
        return [_chrf_counts(metric, hypothesis, accepted) for hypothesis, accepted in pairs]
    scores = [metric.corpus_score([hypothesis], [[one] for one in accepted]) for hypothesis, accepted in pairs]
    return [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]


def _chrf_counts(metric: Any, hypothesis: str, references: Sequence[str]) -> list[float]:
    """Return the number of n-grams of the hypothesis, of its best reference, and of matches, for each order."""
    best: list[float] = []
    best_score = -1.0
    for reference in references:
        score = metric.corpus_score([hypothesis], [[reference]]).score
        if score > best_score:
            best_score, best = score, []
            for order in range(1, metric.char_order + 1):
                said, right = _ngrams(hypothesis, order), _ngrams(reference, order)
                best += [said.total() if right else 0, right.total(), (said & right).total()]
    return best


def _ngrams(text: str, order: int) -> Counter[str]:
    """Count the character n-grams of ``text`` without its white space."""
    text = "".join(text.split())
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def cached_model_file(name: str, file: str) -> Path | None:
    """Return the local path of ``file`` of a hub id or folder, downloaded if necessary; None if there is no such file.

    The public form of transformers' function raises the same error for a missing file and for a missing network.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except TypeError:
        return hub_file(name, file)
    return Path(found) if found else None


def hub_file(name: str, file: str) -> Path | None:
    """Return what `cached_model_file` does, by the functions of huggingface_hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:  # offline too, where a file that is not in the cache cannot be told from a missing one
        return None
