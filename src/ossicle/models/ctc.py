"""A projector that spells speech with the LLM's own tokens, found by connectionist temporal classification (CTC).

It gives the LLM a learned prompt and then one vector per spoken token: a mixture of the LLM's token embeddings,
weighted by how probable each token is. Speech then has the length, the order and nearly the vectors of text, which the
frozen LLM can read at once.

Sources: CTC (Graves et al., 2006); mixtures of token embeddings (LegoSLM, arXiv 2505.11352); the loss on characters in
the middle, fed back into the network (self-conditioned CTC, Nozaki & Komatsu, 2021). Not in the paper.

Shape legend: B utterances, T encoder frames, P positions of the network, V spoken tokens and the blank, S segments of
the whole batch, M segments of the longest utterance, D width of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.models.blocks import TYPICAL_TOKENS_HZ, BlocksConfig, build_blocks
from ossicle.models.dropout import dropout
from ossicle.models.projectors import LONGEST_S, join_frames, whole_frames
from ossicle.models.spoken_tokens import SpokenTokens, spoken_form
from ossicle.precision import outside_autocast
from ossicle.section import section

BLANK = 0
BYTES = 256
SLOTS = 2
"""Characters that one position can spell: more characters than tokens are spoken in a second."""


@dataclass(frozen=True)
class Spelling:
    """Log-probabilities of tokens and characters at each position of an utterance."""

    tokens: Tensor  # (B, P, V) of the blank and the spoken tokens
    characters: Tensor  # (B, P * SLOTS, 1 + BYTES) of the blank and the bytes of characters
    mask: Tensor  # (B, P)
    states: Tensor  # (B, P, D) of the network, from which the tokens were computed


class CTCProjector(nn.Module):
    """Spell speech, and give the LLM a mixture of token embeddings for each spelled token.

    Args:
        in_dim: Width of an encoder frame.
        config: Sizes, a `CTCConfig`.
        stack: Number of neighbouring frames that are joined to a position.
        spoken: The tokens that speech can be spelled with.
        embeddings: The LLM's embeddings of these tokens (V - 1, D_llm).
    """

    embeddings: Tensor

    def __init__(
        self, in_dim: int, config: Any, *, stack: int, spoken: SpokenTokens, embeddings: Tensor, rate_hz: float
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.stack, self.spoken = in_dim, embeddings.shape[1], stack, spoken
        self.frames_per_token = rate_hz / TYPICAL_TOKENS_HZ
        self.dropout = config.dropout
        width = config.width
        self.norm_frames = nn.LayerNorm(in_dim)
        self.enter = nn.Linear(stack * in_dim, width)
        self.blocks = build_blocks(config)
        self.norm_middle = nn.LayerNorm(width)
        self.characters = nn.Linear(width, SLOTS * (1 + BYTES))
        self.back = nn.Linear(SLOTS * (1 + BYTES), width)
        self.norm = nn.LayerNorm(width)
        self.tokens = nn.Linear(width, 1 + len(spoken.ids))
        # The LLM must be told what to do with the speech, which mixtures of words cannot say: stage 2 trains these two.
        self.prompt = nn.Parameter(embeddings[torch.arange(config.prompt) % len(embeddings)].detach().float().clone())
        self.residual = nn.Linear(width, self.out_dim)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)
        self.register_buffer("embeddings", embeddings.detach().float().clone(), persistent=False)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Project ``frames`` (B, T, in_dim) with their mask (B, T) to tokens (B, M, D_llm) with their mask (B, M).

        The first tokens are those of the learned prompt, the same for every utterance.
        """
        spelling = self.spell(frames, frame_mask)
        values, valid = self.mix(spelling)
        values = torch.cat([self.prompt.to(values.dtype).expand(len(values), -1, -1), values], 1)
        return values, torch.cat([valid.new_ones(len(valid), len(self.prompt)), valid], 1)

    @property
    def unspelled(self) -> list[nn.Parameter]:
        """Return the parameters that what is spelled does not depend on."""
        return [self.prompt, *self.residual.parameters()]

    def spell(self, frames: Tensor, frame_mask: Tensor) -> Spelling:
        """Return the log-probabilities of tokens and characters of ``frames`` (B, T, in_dim), in float32."""
        joined, mask = join_frames(self.norm_frames(frames), frame_mask, self.stack)
        x = self.enter(joined)  # (B, P, D)
        x = dropout(x, self.dropout, self.training)
        middle = -(-2 * len(self.blocks) // 3)  # tokens follow from characters more easily than these from sound
        for block in self.blocks[:middle]:
            x = block(x, mask)
        characters = torch.unflatten(self.characters(self.norm_middle(x)), -1, (SLOTS, -1)).float().log_softmax(-1)
        x = x + self.back(characters.exp().flatten(-2).to(x.dtype))
        for block in self.blocks[middle:]:
            x = block(x, mask)
        states = self.norm(x)
        tokens = self.tokens(states).float().log_softmax(-1)
        return Spelling(tokens, characters.flatten(1, 2), mask, states)

    @outside_autocast
    def mix(self, spelling: Spelling) -> tuple[Tensor, Tensor]:
        """Return one vector for each spelled token (B, M, D_llm), and the mask (B, M).

        Neighbouring positions with the same most probable token form a segment. Its vector is the mixture of embeddings
        by the mean probabilities in the segment, without the blank, plus a linear function of the mean state, which is
        zero before training. An utterance of blanks only has one segment: the position whose blank is the least
        probable.
        """
        log_probabilities, mask = spelling.tokens, spelling.mask
        best = log_probabilities.argmax(-1).masked_fill(~mask, BLANK)  # (B, P)
        silent = log_probabilities[..., BLANK].masked_fill(~mask, torch.inf)
        sounds = best != BLANK
        least = F.one_hot(silent.argmin(1), mask.shape[1]).bool()
        sounds = sounds | (least & mask & ~sounds.any(1, keepdim=True))
        starts = sounds & (best != F.pad(best, (1, 0), value=BLANK)[:, :-1])
        starts = starts | (sounds & (best == BLANK))
        order = starts.cumsum(1)  # (B, P) number of the segment, from 1
        counts = order[:, -1]  # (B,)
        offsets = F.pad(counts.cumsum(0), (1, 0))[:-1]
        segment = (offsets[:, None] + order - 1)[sounds]
        total = int(counts.sum())

        def summed(values: Tensor) -> Tensor:
            return values.new_zeros(total, values.shape[1]).index_add(0, segment, values)  # (S, ...)

        spoken = summed(log_probabilities[sounds][:, 1:].exp())  # (S, V - 1)
        states = summed(spelling.states[sounds].float()) / summed(spoken.new_ones(len(segment), 1))
        vectors = (spoken / spoken.sum(1, keepdim=True)) @ self.embeddings + self.residual(states)  # (S, D_llm)
        valid = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]  # (B, M)
        values = vectors.new_zeros(*valid.shape, self.out_dim)
        values[valid] = vectors
        return values, valid

    def heard(self, spelling: Spelling) -> list[str]:
        """Return the text that the network itself recognises in each utterance, in lower case, by greedy decoding."""
        best = spelling.tokens.argmax(-1).masked_fill(~spelling.mask, BLANK)  # (B, P)
        rows = (torch.unique_consecutive(row).tolist() for row in best)
        return [self.spoken.text([label - 1 for label in row if label != BLANK]) for row in rows]

    def targets(self, texts: list[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the labels of each text: those of its spoken tokens, and those of the bytes of its characters."""
        tokens = [[1 + i for i in self.spoken.spell(text)] for text in texts]
        return tokens, [[1 + byte for byte in spoken_form(text).encode()] for text in texts]


def spelled(projector: Any, frames: Padded) -> Spelling:
    """Return what ``projector`` reads out of ``frames`` (B, T, in_dim)."""
    spelling: Spelling = projector.spell(frames.values, frames.mask)
    return spelling


def valid_rows(tokens: Tensor, characters: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of ``tokens`` (P, V) and of ``characters`` (P * SLOTS, 1 + BYTES) at positions in ``mask``."""
    return tokens[mask], characters[mask.repeat_interleave(len(characters) // len(mask))]


def is_sure(characters: Tensor) -> bool:
    """Return False if the log-probabilities ``characters`` (P * SLOTS, 1 + BYTES) say nothing, as without training."""
    return bool(characters.amax(-1).exp().mean() > 0.5)


@section
class CTCConfig(BlocksConfig):
    """A network that spells speech with the LLM's own tokens, for the objective ``ctc`` (not in the paper).

    The LLM gets one vector per spoken token: the mean of its token embeddings, weighted by their probabilities.
    """

    name: Literal["ctc"] = "ctc"
    layers: int = Field(default=4, ge=1, le=256)
    """Number of layers. After two thirds of them the network also spells characters."""
    position_s: float = Field(default=0.06, gt=0, le=LONGEST_S)
    """Seconds of speech per position of the network, rounded to whole frames. A position spells one token at most."""
    merges: int = Field(default=4000, ge=0, le=10**7)
    """Number of merges of the LLM's tokenizer that spell words. Fewer merges give fewer and shorter tokens, which need
    less data to learn and make longer sequences."""
    prompt: int = Field(default=16, ge=0, le=1024)
    """Number of learned vectors before the speech. They tell the LLM what mixtures of its words cannot say."""

    def build(self, in_dim: int, out_dim: int, *, frame_rate_hz: float, llm: Any = None, **_: Any) -> nn.Module:
        """Build the projector for the tokens of ``llm``; its output is made of their embeddings.

        Raises `ModelError` as `SpokenTokens` does.
        """
        spoken = SpokenTokens(llm.tokenizer, self.merges, name=llm.name)
        device = llm.model.get_input_embeddings().weight.device
        return CTCProjector(
            in_dim,
            self,
            stack=whole_frames(self.position_s, frame_rate_hz),
            spoken=spoken,
            embeddings=llm.embed(torch.tensor(spoken.ids, device=device)),
            rate_hz=frame_rate_hz,
        )
