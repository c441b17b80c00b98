"""COMET of translations, by another Python: Unbabel's package needs versions of libraries that Ossicle cannot have.

The scorer is a command that gets two more arguments, REQUEST and ANSWER. REQUEST is JSON lines: ``{"model": ...}``
first, then ``{"src": ..., "mt": ..., "ref": ...}`` per utterance. It writes ANSWER: ``{"model": ..., "version": ...}``
first, then ``{"score": ...}`` per utterance, in order. `comet_worker.py` is such a scorer.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ossicle.errors import CometError
from ossicle.evaluate.hypotheses import Hypothesis
from ossicle.evaluate.parts import Score, mean_parts, score_of

MODEL = "Unbabel/wmt22-comet-da"
PACKAGE = "unbabel-comet==2.2.7"
WORKER = Path(__file__).with_name("comet_worker.py")
HELP = (
    f"COMET runs in an environment of its own, with {PACKAGE} (from PyPI) and the model {MODEL} (2.3 GB, from the "
    "Hugging Face hub; its package calls a model 'not supported' where the hub does not answer). Run this once where "
    "both can be reached, or give --comet-command a scorer of yours. BLEU and chrF, without --comet, need none of it"
)


@dataclass(frozen=True)
class CometOptions:
    """Which scorer, of which model."""

    command: str | None = None
    """A scorer as described above; null = `comet_worker.py` by uvx, or in a virtual environment made for it."""
    model: str = MODEL


def comet(lines: Sequence[Hypothesis], options: CometOptions) -> Score:
    """Mean COMET of translations, times 100, against the first reference of each.

    Raises:
        CometError: no scorer, no model, or a scorer that does not answer line for line.
    """
    for line in lines:
        if not line.text:
            raise CometError(f'{line.source}: no "text": COMET reads what was said; decode again with transcripts')
    utterances = [(line.text or "", line.hypothesis, line.references[0]) for line in lines]
    described, values = _ask(utterances, options)
    return score_of(mean_parts([100 * value for value in values]), described)


def _ask(utterances: Sequence[tuple[str, str, str]], options: CometOptions) -> tuple[str, list[float]]:
    """Signature and scores of (source, translation, reference) triples."""
    requests = [{"model": options.model}, *({"src": src, "mt": mt, "ref": ref} for src, mt, ref in utterances)]
    command = shlex.split(options.command) if options.command else _own_command()
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.jsonl", Path(folder) / "answer.jsonl"
        request.write_text("".join(json.dumps(entry) + "\n" for entry in requests), encoding="utf-8")
        _run([*command, str(request), str(answer)])
        if not answer.is_file():
            raise CometError(f"{shlex.join(command)} wrote no answer. {HELP}")
        header, *rest = answer.read_text(encoding="utf-8").splitlines() or [""]
    described = _described(header)
    if len(rest) != len(utterances):
        raise CometError(
            f"{shlex.join(command)} scored {len(rest)} of {len(utterances)} utterances; it must score each"
        )
    return described, [_score(line, number) for number, line in enumerate(rest, start=2)]


def _described(header: str) -> str:
    """The signature that the first line of the answer makes."""
    try:
        entry = json.loads(header)
        return f"model:{entry['model']}|version:{entry['version']}|refs:first"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CometError(f'the answer\'s line 1 is {header!r}: expected {{"model": ..., "version": ...}}') from error


def _score(line: str, number: int) -> float:
    try:
        score = float(json.loads(line)["score"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CometError(f'the answer\'s line {number} is {line!r}: expected {{"score": a number}}') from error
    if not math.isfinite(score):
        raise CometError(f"the answer's line {number} is {line!r}: not a finite number")
    return score


def _own_command() -> list[str]:
    """uvx where there is one, else a virtual environment that is made once."""
    if uvx := shutil.which("uvx"):
        return [uvx, "--from", PACKAGE, "--with", "setuptools<81", "python", str(WORKER)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "ossicle" / PACKAGE.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", PACKAGE, "setuptools<81"])
        (folder / "complete").touch()
    return [str(python), str(WORKER)]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CometError(f"{shlex.join(command)}: {error}. {HELP}") from error
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "nothing"
        raise CometError(f"{shlex.join(command)} failed with {done.returncode} and said: {said}. {HELP}")
