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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossicle.batch import Padded
from ossicle.models.packing import attend
from ossicle.models.spoken_tokens import SpokenTokens, spoken_form
from ossicle.precision import outside_autocast

BLANK = 0
BYTES = 256
SLOTS = 2
"""Characters that one position can spell: more characters than tokens are spoken in a second."""
TYPICAL_TOKENS_HZ = 4.0
"""Tokens in a second of English, for estimates of length. The true number depends on what is said."""


@dataclass(frozen=True)
class Spelling:
    """Log-probabilities of tokens and characters at each position of an utterance."""

    tokens: Tensor  # (B, P, V) of the blank and the spoken tokens
    characters: Tensor  # (B, P * SLOTS, 1 + BYTES) of the blank and the bytes of characters
    mask: Tensor  # (B, P)
    states: Tensor  # (B, P, D) of the network, from which the tokens were computed


class Block(nn.Module):
    """Self-attention, a convolution over neighbouring positions, and a feed-forward layer; each with a pre-norm.

    Source: Conformer (Gulati et al., 2020), with one feed-forward layer and a layer norm in the convolution.
    """

    def __init__(self, width: int, heads: int, *, ffn: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_conv, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.conv_in, self.conv_out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm_inside = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Update ``x`` (B, P, D), of which ``mask`` (B, P) is valid."""
        heads = torch.unflatten(self.attention_in(self.norm_attention(x)), -1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # 3 of (B, heads, P, D / heads)
        attended = attend(query, key, value, mask=mask[:, None, None])
        x = x + self._drop(self.attention_out(attended.transpose(1, 2).flatten(-2)))
        inside = F.glu(self.conv_in(self.norm_conv(x))) * mask[..., None]  # a convolution must not read padding
        inside = self.norm_inside(self.conv(inside.transpose(1, 2)).transpose(1, 2))
        x = x + self._drop(self.conv_out(F.silu(inside)))
        return x + self._drop(self.down(F.gelu(self.up(self.norm_ffn(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CTCProjector(nn.Module):
    """Spell speech, and give the LLM a mixture of token embeddings for each spelled token.

    Args:
        in_dim: Width of an encoder frame.
        config: Sizes, a `ossicle.models.projectors.CTCConfig`.
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
        self.blocks = nn.ModuleList(
            Block(width, config.heads, ffn=config.ffn, kernel=config.kernel, dropout=config.dropout)
            for _ in range(config.layers)
        )
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
        padding = -frames.shape[1] % self.stack
        normed = F.pad(self.norm_frames(frames) * frame_mask[..., None], (0, 0, 0, padding))
        mask = torch.unflatten(F.pad(frame_mask, (0, padding)), 1, (-1, self.stack)).any(-1)  # (B, P)
        x = self.enter(torch.unflatten(normed, 1, (-1, self.stack)).flatten(2))  # (B, P, D)
        x = F.dropout(x, self.dropout, self.training)
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


def ctc_projector(in_dim: int, config: Any, llm: Any, *, frame_rate_hz: float) -> CTCProjector:
    """Return the projector for the tokens of ``llm``. Raises `ModelError` as `SpokenTokens` does."""
    spoken = SpokenTokens(llm.tokenizer, config.merges, name=llm.name)
    device = llm.model.get_input_embeddings().weight.device
    return CTCProjector(
        in_dim,
        config,
        stack=max(1, round(config.position_s * frame_rate_hz)),
        spoken=spoken,
        embeddings=llm.embed(torch.tensor(spoken.ids, device=device)),
        rate_hz=frame_rate_hz,
    )


def spelled(projector: Any, frames: Padded) -> Spelling:
    """Return what ``projector`` reads out of ``frames`` (B, T, in_dim)."""
    spelling: Spelling = projector.spell(frames.values, frames.mask)
    return spelling
