"""Make training rows for the lab's LLM: one passage, and several instructions about it that do not see each other.

Each instruction with its answer is a branch: it starts at the position after the passage and attends to the passage and
itself. So every branch equals a chat with that single instruction, at a third of the cost. Shapes: R rows, L positions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ossicle_lab.models.tokenizer import ASSISTANT, BOS, END, PAD, USER, WordIds
from ossicle_lab.world.grammar import ENGLISH, TRANSLATIONS
from ossicle_lab.world.passages import Passage, random_passage
from ossicle_lab.world.tasks import TASKS, Task, ask

_PASSAGE = 0  # group of the passage's tokens; branches are numbered from 1
_NOTHING = -1  # group of padding, and the value of `Row.reads` for tokens that see no other group

_ECHO_SHARE = 0.6
_OTHER_SHARE = 0.7
_PLAIN_SHARE = 0.2
_PLAIN_TOKEN_WEIGHT = 0.02
_OTHERS = tuple(task for task in TASKS if task not in ("asr", "st", "qa", "echo", "backwards"))


@dataclass(frozen=True)
class Stage:
    """The mix of rows from one training step on."""

    first_step: int
    sentence_shares: tuple[float, float, float]
    """Shares of passages with 1, 2 and 3 sentences."""
    disturbed_share: float
    """Share of rows whose passage has repeated tokens and noisy embeddings, like speech."""
    questions: int = 3
    """Largest number of questions about a passage."""
    question_weight: float = 0.0
    """Loss weight of each token of a question after its first word. After "what did anna", the passage tells that "buy"
    follows. Predicting it teaches the LLM to find the right sentence, which answers alone do not."""
    who_weight: float = 0.0
    """Loss weight of predicting the subject already at the verb of "who fed the dog"; the answer then copies it."""
    backwards_share: float = 0.0
    """Share of rows with the passage backwards as an answer, since "who" has to read the words before a key."""


@dataclass
class Row:
    """A training row, as lists with one value per position (L)."""

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    """Token to predict from the position before: the token itself, except for hints (`Stage.who_weight`)."""
    positions: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    """Other group that each position attends to."""
    weights: list[float] = field(default_factory=list)
    """Loss weight of predicting each token from the one before."""
    noise: float = 0.0
    """Standard deviation of the noise on the passage's embeddings, in units of their RMS."""

    def add(self, ids: list[int], weights: list[float], group: int, reads: int, start: int) -> None:
        """Append tokens of one group, at positions from ``start``."""
        self.ids += ids
        self.targets += ids
        self.weights += weights
        self.positions += range(start, start + len(ids))
        self.groups += [group] * len(ids)
        self.reads += [reads] * len(ids)


@dataclass(frozen=True)
class RowBatch:
    """A batch of rows."""

    ids: Tensor  # (R, L) long
    targets: Tensor  # (R, L) long, predicted from the previous position
    positions: Tensor  # (R, L) long
    visible: Tensor  # (R, L, L) bool, True where the query attends to the key
    weights: Tensor  # (R, L) float, loss weight of the target at this position
    noise: Tensor  # (R, L) float, standard deviation relative to the RMS of the embeddings


class RowMaker:
    """Draw rows. All random choices use the generator that is passed in."""

    def __init__(self, word_ids: WordIds, special_ids: dict[str, int]) -> None:
        self._ids = word_ids
        self._special = special_ids

    def block(self, rng: random.Random, stage: Stage, batches: int, rows: int) -> list[RowBatch]:
        """Draw batches of ``rows`` rows, with rows of similar length together and batches in random order."""
        drawn = sorted((self.row(rng, stage) for _ in range(batches * rows)), key=lambda row: len(row.ids))
        groups = [drawn[start : start + rows] for start in range(0, len(drawn), rows)]
        rng.shuffle(groups)
        return [collate_rows(group, self._special[PAD]) for group in groups]

    def row(self, rng: random.Random, stage: Stage) -> Row:
        """Draw a training passage with questions, one long answer, and in most cases another task."""
        passage = random_passage("train", rng.choices((1, 2, 3), stage.sentence_shares)[0], rng)
        disturbed = rng.random() < stage.disturbed_share
        words = self._ids(passage.text)
        spoken = _repeat_some(words, rng) if disturbed else words
        row = Row(noise=rng.uniform(0.0, 0.5) if disturbed else 0.0)
        prefix = [self._special[BOS], self._special[USER], *spoken]
        row.add(prefix, [0.0] * len(prefix), _PASSAGE, _NOTHING, 0)
        for group, task in enumerate(_draw_tasks(passage, stage, rng), start=1):
            self._branch(row, task, group, stage)
        if rng.random() < _PLAIN_SHARE:
            weights = [0.0] + [_PLAIN_TOKEN_WEIGHT] * (len(words) - 1)
            row.add(words, weights, max(row.groups) + 1, _NOTHING, 0)
        return row

    def _branch(self, row: Row, task: Task, group: int, stage: Stage) -> None:
        """Append instruction, answer and end. The weight of an answer grows with the square root of its length."""
        instruction = self._ids(task.instruction)
        answer = [*self._ids(task.answers[0]), self._special[END]]
        hinted = stage.who_weight > 0 and task.instruction.startswith("who ")
        question_weight = stage.question_weight if task.task == "qa" and not hinted else 0.0
        weights = [0.0] + [question_weight] * (len(instruction) - 1) + [0.0, 0.0]
        weights += [len(answer) ** -0.5] * len(answer)
        markers = [self._special[END], self._special[ASSISTANT]]
        start = len(row.ids)
        row.add(instruction + markers + answer, weights, group, _PASSAGE, row.groups.count(_PASSAGE))
        if hinted:
            after_verb = start + 2  # every word of a question is one token
            row.targets[after_verb] = answer[-2]  # the noun: the last word before the end marker
            row.weights[after_verb] = stage.who_weight


def collate_rows(rows: list[Row], pad_id: int) -> RowBatch:
    """Pad rows to the longest, rounded up to a multiple of 8."""
    length = -(-max(len(row.ids) for row in rows) // 8) * 8

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([value + [fill] * (length - len(value)) for value in values])

    groups = padded([row.groups for row in rows], _NOTHING)
    reads = padded([row.reads for row in rows], _NOTHING)
    same = groups[:, :, None] == groups[:, None, :]
    readable = (reads[:, :, None] == groups[:, None, :]) & (groups[:, None, :] != _NOTHING)
    weights = torch.tensor([row.weights + [0.0] * (length - len(row.weights)) for row in rows])
    noise = torch.tensor([[row.noise] for row in rows]) * (groups == _PASSAGE)
    noise[:, :2] = 0.0  # the begin and user markers are text also where the passage is speech
    return RowBatch(
        ids=padded([row.ids for row in rows], pad_id),
        targets=padded([row.targets for row in rows], pad_id),
        positions=padded([row.positions for row in rows], 0),
        visible=(same | readable) & torch.ones(length, length, dtype=torch.bool).tril(),
        weights=weights,
        noise=noise,
    )


def _draw_tasks(passage: Passage, stage: Stage, rng: random.Random) -> list[Task]:
    asked: dict[str, Task] = {}
    for _ in range(stage.questions):
        question = ask(passage, "qa", rng)
        if question:
            asked[question.instruction] = question
    tasks: list[Task | None] = list(asked.values())
    if rng.random() < _ECHO_SHARE:
        tasks.append(ask(passage, "echo", rng))
    language = rng.choice((ENGLISH, *TRANSLATIONS))
    tasks.append(ask(passage, "asr" if language == ENGLISH else "st", rng, language))
    if rng.random() < _OTHER_SHARE:
        tasks.append(ask(passage, rng.choice(_OTHERS), rng))
    if stage.backwards_share and rng.random() < stage.backwards_share:
        tasks.append(ask(passage, "backwards", rng))
    return [task for task in tasks if task]


def _repeat_some(ids: list[int], rng: random.Random) -> list[int]:
    """Repeat each token one to three times, as a projector outputs several vectors per word."""
    return [token for token in ids for _ in range(rng.choice((1, 1, 2, 3)))]
