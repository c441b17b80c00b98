"""Compare a recording with a text inside the LLM: which speech token is which word, and how similar they are by layer.

Shape legend: S audio samples, M speech tokens, N tokens of the text, W words, D width of the LLM.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ossicle.audio import SAMPLE_RATE_HZ
from ossicle.batch import Batch, Padded, Sample, pad, pad_ids
from ossicle.errors import DataError
from ossicle.inspect.alignment import similarity_matrix
from ossicle.inspect.states import KeptStates, pooled_states
from ossicle.inspect.transport import transport_plan
from ossicle.languages import unspaced_script
from ossicle.models.ctc import BLANK, spelled
from ossicle.models.speech_llm import SpeechLLM

MOST_S, MOST_TEXT_TOKENS = 30.0, 300
"""Longest recording in seconds, and longest text. The maps grow with the product of both lengths."""
MAPS = 5
"""Number of layers with a map, from the first to the last."""
PLAN_TOLERANCE = 0.01
"""Relative error of a column sum that is too small to see in a map."""
OTHER_TEXTS = (
    "The committee will publish its report on public transport next week.",
    "She planted three apple trees behind the old stone house.",
    "Water boils at a lower temperature on high mountains.",
    "Our train was late, so we had breakfast at the station.",
)
"""Texts that nobody said. A similarity means something only beside theirs: in many layers all texts are alike."""
CLIP = "clip"


@dataclass(frozen=True)
class SpeechToken:
    """One speech token of the recording, and the word that it is nearest to."""

    start_s: float
    end_s: float
    heard: str | None
    """Text that the projector spelled; only the projector ``ctc`` spells."""
    word: int
    """Index of the word that has the largest share of this token."""
    share: float
    """That share, 0 to 1, in the map of `map_layer`."""


@dataclass(frozen=True)
class LayerSimilarity:
    """Cosine similarity of the recording with the text, and with texts that nobody said, at one layer of the LLM."""

    layer: int
    matched: float
    """Cosine similarity of the mean states of speech and text."""
    other: float
    """The same for other texts, averaged."""
    token_matched: float
    """Cosine similarity of each text token and its nearest speech token, averaged."""
    token_other: float


def analyse(model: SpeechLLM, waveform: npt.NDArray[np.float32], text: str) -> dict[str, Any]:
    """Return where the words of ``text`` are in the speech tokens of ``waveform`` (S,), as plain values for JSON.

    Speech and text go through the LLM separately, without a chat turn. The learned prompt of the projector ``ctc``
    comes before the speech and is left out of all results. The dictionary has:

    - ``duration_s``, ``words`` (W texts) and ``prompt_tokens``, the number of vectors that were left out;
    - ``speech_tokens``, M dictionaries of `SpeechToken`;
    - ``layers``, one dictionary of `LayerSimilarity` for each layer; 0 is the input of the LLM;
    - ``map_layer``, the layer at which the tokens of the text stand out most from other texts;
    - ``maps``, for some layers ``{"layer": k, "shares": W lists of M numbers}``. The shares of a speech token sum to 1.
      They are the columns of the optimal-transport plan between the tokens.

    Raises `DataError` for an empty text or recording, for one that is longer than `MOST_S` or `MOST_TEXT_TOKENS`, and
    for what `SpeechLLM.speech` rejects.
    """
    words, ids = _words(model, text)
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    if not 0 < duration_s <= MOST_S:
        raise DataError(f"the recording has {duration_s:.1f} s: send a part of more than 0 and at most {MOST_S:g} s")
    batch = _batch(waveform, text, [token for word in ids for token in word]).to(model.llm.model.device)
    with torch.no_grad():
        batch = replace(batch, frames=model.frames(batch))  # the encoder runs once
    layers = range(model.llm.num_layers + 1)
    kept = KeptStates([CLIP], layers)
    pooled_states(model, [batch], observers=[kept])
    prompt = int(getattr(model.projector, "prompt", torch.empty(0)).shape[0])
    speech = {layer: states[prompt:] for layer, states in kept.speech[CLIP].items()}
    similarities = _similarities(model, kept.text[CLIP], speech)
    best = max(similarities, key=lambda row: row.token_matched - row.token_other).layer
    maps = {k: _shares(kept.text[CLIP][k], speech[k], [len(word) for word in ids]) for k in _spread(layers, best)}
    spans = _spans(model, batch, len(speech[0]))
    tokens = [
        SpeechToken(round(start_s, 3), round(min(end_s, duration_s), 3), heard, int(word), round(float(share), 3))
        for (start_s, end_s, heard), share, word in zip(spans, *maps[best].max(0), strict=True)
    ]
    return {
        "duration_s": round(duration_s, 3),
        "words": words,
        "prompt_tokens": prompt,
        "speech_tokens": [asdict(token) for token in tokens],
        "layers": [{name: round(value, 4) for name, value in asdict(row).items()} for row in similarities],
        "map_layer": best,
        "maps": [
            {"layer": layer, "shares": [[round(share, 3) for share in row] for row in shares.tolist()]}
            for layer, shares in maps.items()
        ],
    }


def _words(model: SpeechLLM, text: str) -> tuple[list[str], list[list[int]]]:
    """Return the words of ``text`` and the token ids of each; tokens take the place of words in scripts without spaces.

    Raises `DataError` for a text that is empty or too long.
    """
    prompter = model.prompter()
    words = text.split()
    ids = prompter.word_ids(words)
    if unspaced_script([text]):
        ids = [[token] for word in ids for token in word]
        words = [model.llm.tokenizer.decode(token).strip() for token in ids]
    words, ids = [w for w, i in zip(words, ids, strict=True) if i], [i for i in ids if i]
    if not 0 < sum(map(len, ids)) <= MOST_TEXT_TOKENS:
        raise DataError(f"the text has {sum(map(len, ids))} tokens: send between 1 and {MOST_TEXT_TOKENS}")
    return words, ids


def _batch(waveform: npt.NDArray[np.float32], text: str, ids: list[int]) -> Batch:
    sample = Sample(id=CLIP, audio=Path(), text=text, source="the recording")
    return Batch(samples=[sample], waveforms=pad([torch.as_tensor(waveform, dtype=torch.float32)]), text=pad_ids([ids]))


def _similarities(model: SpeechLLM, text: dict[int, Tensor], speech: dict[int, Tensor]) -> list[LayerSimilarity]:
    """Return the similarities at each layer of ``text`` (N, D) and ``speech`` (M, D)."""
    prompter = model.prompter()
    ids = pad_ids([prompter.content_ids(other) for other in OTHER_TEXTS])
    read = model.llm.read(ids.to(model.llm.model.device), list(text))
    rows = []
    for layer in text:
        states = read.states[layer].float().cpu()
        others = [row[mask] for row, mask in zip(states, ids.mask, strict=True)]
        found = [_pair(side, speech[layer]) for side in (text[layer], *others)]
        (matched, tokens), rest = found[0], torch.tensor(found[1:]).mean(0).tolist()
        rows.append(LayerSimilarity(layer, matched, rest[0], tokens, rest[1]))
    return rows


def _pair(text: Tensor, speech: Tensor) -> tuple[float, float]:
    """Return the cosine of the means of ``text`` (N, D) and ``speech`` (M, D), and the mean of each token's largest."""
    means = similarity_matrix(text.mean(0, keepdim=True), speech.mean(0, keepdim=True))
    return float(means), float(similarity_matrix(text, speech).amax(1).mean())


def _shares(text: Tensor, speech: Tensor, lengths: list[int]) -> Tensor:
    """Return the share (W, M) of each speech token that goes to each word of ``lengths`` tokens; columns sum to 1."""
    plan = transport_plan(text, speech, tolerance=PLAN_TOLERANCE)  # (N, M)
    return torch.stack([part.sum(0) for part in torch.split(plan, lengths)]) / plan.sum(0)


def _spread(layers: range, best: int) -> list[int]:
    """Return `MAPS` layers from the first to the last, and ``best``, in ascending order."""
    last = layers[-1]
    return sorted({round(i * last / (MAPS - 1)) for i in range(MAPS)} | {best})


def _spans(model: SpeechLLM, batch: Batch, count: int) -> list[tuple[float, float, str | None]]:
    """Return start and end in seconds of each of ``count`` speech tokens, and the text of those that are spelled.

    All queries of a Q-Former see their whole window, and have its times.
    """
    projector, rate_hz = model.projector, model.encoder.frame_rate_hz
    if model.config.projector.name == "ctc":
        assert batch.frames is not None  # `analyse` has set them
        return _spelled_spans(projector, batch.frames, projector.stack / rate_hz)
    together = getattr(projector, "num_queries", 1)
    length_s = getattr(projector, "window", projector.frames_per_token) / rate_hz
    return [(i // together * length_s, (i // together + 1) * length_s, None) for i in range(count)]


@torch.no_grad()
def _spelled_spans(projector: Any, frames: Padded, position_s: float) -> list[tuple[float, float, str | None]]:
    """Return the spans of the segments of `ossicle.models.ctc.CTCProjector.mix`, for one utterance."""
    spelling = spelled(projector, frames)
    log_probabilities = spelling.tokens[0][spelling.mask[0]]  # (P, V)
    labels, counts = torch.unique_consecutive(log_probabilities.argmax(-1), return_counts=True)
    ends = counts.cumsum(0)
    runs = zip(labels.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    spans = [
        (start * position_s, end * position_s, projector.spoken.text([label - 1]))
        for label, start, end in runs
        if label != BLANK
    ]
    if spans:
        return spans
    least = int(log_probabilities[:, BLANK].argmin())
    return [(least * position_s, (least + 1) * position_s, "")]
