"""Score translations with COMET in a separate Python environment.

Unbabel's package needs library versions that conflict with those of Ossicle, so the scorer is a command. It is called
with two more arguments, REQUEST and ANSWER, which are files of JSON lines. REQUEST begins with ``{"model": ...}``,
followed by ``{"src": ..., "mt": ..., "ref": ...}`` per utterance. The scorer writes ANSWER: first
``{"model": ..., "version": ...}``, then ``{"score": ...}`` per utterance, in order. `comet_worker.py` is such a scorer.
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
    f"COMET runs in a separate environment with {PACKAGE} (from PyPI) and the model {MODEL} (2.3 GB, from the Hugging "
    "Face hub). If the hub cannot be reached, the package reports that the model is not supported. Run this command "
    "once where both can be downloaded, or give your own scorer with --comet-command. "
    "Without --comet, translations get BLEU and chrF only"
)


@dataclass(frozen=True)
class CometOptions:
    """Settings of COMET."""

    command: str | None = None
    """Command of a scorer as described above. None runs `comet_worker.py` with uvx, or in a virtual environment that
    is created once."""
    model: str = MODEL
    """Hub id of the COMET model."""


def comet(lines: Sequence[Hypothesis], options: CometOptions) -> Score:
    """Compute the mean COMET score of translations, times 100, against the first reference of each line.

    Raises:
        CometError: a line has no transcript, the scorer or its model is missing, or the answer is invalid.
    """
    for line in lines:
        if not line.text:
            raise CometError(f'{line.source}: no "text": COMET needs the transcript; decode again with transcripts')
    utterances = [(line.text or "", line.hypothesis, line.references[0]) for line in lines]
    signature, values = _run_scorer(utterances, options)
    return score_of(mean_parts([100 * value for value in values]), signature)


def _run_scorer(utterances: Sequence[tuple[str, str, str]], options: CometOptions) -> tuple[str, list[float]]:
    """Return the signature and the scores of (source, translation, reference) triples."""
    requests = [{"model": options.model}, *({"src": src, "mt": mt, "ref": ref} for src, mt, ref in utterances)]
    try:
        command = shlex.split(options.command) if options.command else _default_command()
    except ValueError as error:
        raise CometError(f"--comet-command {options.command}: is no command ({error}); close the quotation") from error
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.jsonl", Path(folder) / "answer.jsonl"
        request.write_text("".join(json.dumps(entry) + "\n" for entry in requests), encoding="utf-8")
        _run([*command, str(request), str(answer)])
        if not answer.is_file():
            raise CometError(f"{shlex.join(command)} wrote no answer. {HELP}")
        header, *rest = answer.read_text(encoding="utf-8").splitlines() or [""]
    signature = _parse_header(header)
    if len(rest) != len(utterances):
        raise CometError(
            f"{shlex.join(command)} scored {len(rest)} of {len(utterances)} utterances; it must score each"
        )
    return signature, [_parse_score(line, number) for number, line in enumerate(rest, start=2)]


def _parse_header(header: str) -> str:
    """Return the signature given by the first line of the answer."""
    try:
        entry = json.loads(header)
        return f"model:{entry['model']}|version:{entry['version']}|refs:first"
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CometError(f'the answer\'s line 1 is {header!r}: expected {{"model": ..., "version": ...}}') from error


def _parse_score(line: str, number: int) -> float:
    try:
        score = float(json.loads(line)["score"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CometError(f'the answer\'s line {number} is {line!r}: expected {{"score": a number}}') from error
    if not math.isfinite(score):
        raise CometError(f"the answer's line {number} is {line!r}: not a finite number")
    return score


def _default_command() -> list[str]:
    """Return the command that runs `comet_worker.py`: with uvx if installed, else in a virtual environment."""
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
        output = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:]) or "nothing"
        raise CometError(f"{shlex.join(command)} failed with status {done.returncode} and printed: {output}. {HELP}")
