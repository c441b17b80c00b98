"""Read random manifests, audio files, recipes and overrides: no exception but `OssicleError` may come out.

Usage: python benchmarks/fuzz.py [--manifests 300] [--audio 200] [--recipes 200] [--overrides 200] [--seed 0]
    [--limit-s 10] [--limit-mb 1024] [--out fuzz.json]

Hypothesis makes the inputs:

- manifests: lines with odd values in every field, odd bytes, and broken JSON; what is read is written and read again;
- audio: WAV, FLAC, Ogg and MP3 files with flipped, cut, repeated and inserted bytes, and lying headers;
- recipes: the recipes of the package with odd values and odd names at random places;
- overrides: random and nearly valid ``field=value`` texts.

Inputs are drawn in rounds of 2,000, each with a seed of its own. ``--out`` is written after each round, and the same
command continues from it. One input that takes longer than ``--limit-s``, and memory that grows by more than
``--limit-mb``, count as faults too. Prints a table, and the smallest input for each kind of fault. Exits with 1 if
there is one.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import soundfile
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

import ossicle.recipes
from ossicle.audio import audio_duration_s, read_audio
from ossicle.data.manifest import TEXT_FIELDS, read_manifest, write_manifest
from ossicle.errors import OssicleError
from ossicle.files import write_json
from ossicle.train.recipe import load, parse, to_dict

ODD = st.one_of(
    st.sampled_from(
        [None, True, "", "x", "mlp", "\0", "\ud83d", [], {}, [[]], {"name": 3}, 10**400, -1, 1e999, "1e999"]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
FIELDS = ["id", "audio", "answer", "answers", "duration_s", "start_s", "end_s", *TEXT_FIELDS, "words", "x", ""]
PATHS = st.sampled_from(
    ["a.wav", "../a.wav", "/etc/hostname", "~", "~root", "a\0b", "x" * 300, "ä" * 2000, ".", "/dev/x"]
)
SECONDS = st.sampled_from([0, 0.5, 1, 3.25, 1e8, 1e9, -1, None])
VALID = {name: st.text(max_size=8) for name in TEXT_FIELDS} | {"answers": st.lists(st.text(max_size=5), max_size=2)}
VALID |= dict.fromkeys(("duration_s", "start_s", "end_s"), SECONDS) | {"x": ODD}
GOOD = st.fixed_dictionaries(
    {"id": st.text("abcdef", min_size=4, max_size=8), "audio": st.just("a.wav")}, optional=VALID
)
LINES = st.one_of(
    st.fixed_dictionaries({"id": st.text(min_size=1, max_size=4), "audio": PATHS}, optional=VALID),
    st.dictionaries(st.sampled_from(FIELDS), ODD | PATHS, max_size=6),
    st.fixed_dictionaries(
        {"id": st.text(min_size=1, max_size=4), "audio": PATHS}, optional=dict.fromkeys(FIELDS[2:], ODD)
    ),
    ODD,
)
ROUND = 2000
"""Inputs that Hypothesis draws at once: it remembers them all, and becomes slower."""
SYNTAX = "{}[]:,\"'\\ \t\r\n\ufeff\u20280123456789.eE+-nulltrefasNI"
YAML_SYNTAX = "trainsepdobjcl.=[]{}&*!:-<'\"\\\n0127 ,#|>%@\t?~"


class TooLong(BaseException):
    """Raised inside an input that takes longer than the limit; no ``except Exception`` catches it."""


@dataclass
class Result:
    """Count the outcomes of one kind of input."""

    kind: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    grown_mb: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)
    """The smallest input of each kind of fault."""


def peak_mb() -> float:
    """Return the peak memory of this process in MB.

    What the system counts for a process begins with the peak of the one that started it, so that Linux is asked for
    the peak of the memory itself.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"more than {seconds:g} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def fuzz(
    result: Result, inputs: st.SearchStrategy[Any], use: Callable[[Any], None], options: argparse.Namespace
) -> Iterator[Result]:
    """Call ``use`` until ``result`` has as many inputs as the option of its kind says, and yield it after each round.

    ``use`` may return or raise `OssicleError`.
    """
    began_mb = peak_mb()
    while (left := getattr(options, result.kind) - result.inputs) > 0:
        run_round(result, inputs, use, options, count=min(ROUND, left), began_mb=began_mb)
        yield result


def run_round(
    result: Result,
    inputs: st.SearchStrategy[Any],
    use: Callable[[Any], None],
    options: argparse.Namespace,
    *,
    count: int,
    began_mb: float,
) -> None:
    @seed(options.seed + result.inputs)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(value: Any) -> None:
        result.inputs += 1
        began_s, fault = time.perf_counter(), ""
        try:
            with time_limit(options.limit_s):
                use(value)
            result.accepted += 1
        except OssicleError as error:
            result.refused += 1
            if len(str(error)) > 5000:
                fault = f"{type(error).__name__}: its message has {len(str(error))} characters"
        except (Exception, TooLong) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        took_s = time.perf_counter() - began_s
        if took_s > options.limit_s and not fault:  # the signal was lost, or came after the input
            fault = f"took more than {options.limit_s:g} s"
        result.slowest_s = max(result.slowest_s, took_s)
        result.grown_mb = max(result.grown_mb, peak_mb() - began_mb)
        if result.grown_mb > options.limit_mb:
            fault = f"memory grew by {result.grown_mb:.0f} MB"
        if fault:
            result.faults[fault] = min(result.faults.get(fault, repr(value)), repr(value), key=len)

    run()


@st.composite
def manifests(draw: st.DrawFn) -> bytes:
    """Draw the bytes of a manifest."""
    lines = []
    for value in draw(st.lists(LINES, max_size=4) | st.lists(GOOD, min_size=1, max_size=4)):
        try:
            line = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
        except ValueError:  # an integer of more digits than Python writes
            line = b'{"id": "a", "audio": "b", "duration_s": ' + b"9" * 5000 + b"}"
        lines.append(line)
    content = b"\n".join(lines)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        odd = draw(st.binary(max_size=4) | st.text(st.sampled_from(SYNTAX), max_size=12).map(str.encode))
        content = content[:at] + odd + content[at + draw(st.integers(0, 4)) :]
    return content


def read_manifests(path: Path) -> Callable[[bytes], None]:
    def use(content: bytes) -> None:
        path.write_bytes(content)
        samples = read_manifest(path)
        copy = path.with_name("copy.jsonl")
        write_manifest(copy, samples)
        again = read_manifest(copy)
        if len(again) != len(samples):
            raise AssertionError("the copy has another number of lines")
        for sample in samples[:2]:
            if not sample.audio.is_absolute() or not str(sample.audio).startswith("/dev"):
                with suppress(OssicleError):  # there is no such file
                    read_audio(sample.audio, start_s=sample.start_s, end_s=sample.end_s, most_s=60)

    return use


def sounds() -> list[tuple[str, bytes]]:
    """Return valid audio files, each with its suffix."""
    time_s = np.arange(8000) / 16_000
    wave, made = 0.3 * np.sin(2 * np.pi * 300 * time_s), []
    for kind, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)):
        file = io.BytesIO()
        soundfile.write(file, wave, 16_000, subtype=subtype, format=kind)
        made.append((kind.lower(), file.getvalue()))
    return made


@st.composite
def audio_files(draw: st.DrawFn, made: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Draw a damaged audio file, with its suffix."""
    suffix, whole = draw(st.sampled_from(made))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # Most of the meaning is in the header.
        at = draw(st.integers(0, min(len(content), 120)) | st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "number", "cut", "insert", "repeat"])):
            case "flip" if at < len(content):
                content[at] = draw(st.integers(0, 255))
            case "number":
                content[at : at + 4] = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = draw(st.binary(max_size=16))
            case _:
                content[at:at] = content[at : at + 200]
    return draw(st.sampled_from([suffix, suffix, suffix, "wav", "m4a"])), bytes(content)


def read_sounds(folder: Path) -> Callable[[tuple[str, bytes]], None]:
    def use(file: tuple[str, bytes]) -> None:
        path = folder / f"a.{file[0]}"
        path.write_bytes(file[1])
        duration_s = audio_duration_s(path)
        wave = read_audio(path, most_s=3600)
        if not (np.isfinite(wave).all() and wave.ndim == 1 and math.isfinite(duration_s)):
            raise AssertionError("the waveform is not finite, or has several channels")

    return use


def places(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in ``tree``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, item in items for found in places(item, (*path, key)))]


def values_of(whole: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[Any]]:
    """Return the values that each field has in the recipes ``whole``, by its path."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for tree in whole:
        for path in places(tree)[1:]:
            value = value_at(tree, path)
            if not isinstance(value, dict | list):
                found.setdefault(path, {})[repr(value)] = value
    return {path: list(values.values()) for path, values in found.items()}


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


@st.composite
def recipes(draw: st.DrawFn, whole: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw a recipe with odd values, or those of other recipes, at places that a seed chooses."""
    values = values_of(whole)
    plain = [value for found in values.values() for value in found]
    choice = random.Random(draw(st.integers(0, 2**32)))
    tree: dict[str, Any] = json.loads(json.dumps(choice.choice(whole)))
    same = choice.random() < 0.5
    for value in draw(st.lists(ODD | st.sampled_from(plain), min_size=1, max_size=3)):
        found = places(tree)[1:]
        if not found:
            break
        *parents, leaf = path = choice.choice(found)
        node = value_at(tree, tuple(parents))
        if same:
            node[leaf] = choice.choice(values.get(path, [node[leaf]]))
            continue
        if choice.random() < 0.2 and isinstance(node, dict):
            leaf = choice.choice(["", "x", "name", 7, "\ud800"])
        node[leaf] = value
    return tree


def use_recipe(tree: dict[str, Any]) -> None:
    config = parse(tree)
    again = to_dict(config)
    if parse(again) != config:
        raise AssertionError("what is written is read otherwise")
    yaml.safe_dump(again)


def overrides(whole: list[dict[str, Any]]) -> st.SearchStrategy[list[str]]:
    """Return a strategy of overrides: some with real fields, and some of random characters."""
    values = {".".join(map(str, path)): found for path, found in values_of(whole).items()}
    names = sorted({".".join(map(str, path)) for tree in whole for path in places(tree)[1:]})
    value = st.text(st.sampled_from(YAML_SYNTAX), max_size=16) | ODD.map(lambda odd: repr(odd)[:400])
    value |= st.sampled_from([json.dumps(one) for found in values.values() for one in found])
    real = st.builds("{}={}".format, st.sampled_from(names), value)
    good = st.sampled_from([f"{name}={json.dumps(one)}" for name, found in values.items() for one in found])
    odd = st.lists(real | st.text(st.sampled_from(YAML_SYNTAX), max_size=40), min_size=1, max_size=3)
    return odd | st.lists(good, min_size=1, max_size=3)


def use_overrides(recipe: Path) -> Callable[[list[str]], None]:
    def use(texts: list[str]) -> None:
        use_recipe(to_dict(load(recipe, texts)))

    return use


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for kind, count in (("manifests", 300), ("audio", 200), ("recipes", 200), ("overrides", 200)):
        parser.add_argument(f"--{kind}", type=int, default=count, help=f"number of {kind}")
    parser.add_argument("--seed", type=int, default=0, help="seed of hypothesis")
    parser.add_argument("--limit-s", type=float, default=10.0, help="most seconds for one input")
    parser.add_argument("--limit-mb", type=float, default=1024.0, help="most MB by which memory may grow")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    files = sorted(Path(ossicle.recipes.__path__[0]).rglob("*.yaml"))
    whole = [to_dict(load(path)) for path in files]
    kinds = ("manifests", "audio", "recipes", "overrides")
    old = json.loads(options.out.read_text()) if options.out and options.out.is_file() else []
    results = {kind: Result(kind) for kind in kinds} | {one["kind"]: Result(**one) for one in old}
    results = {kind: one for kind, one in results.items() if getattr(options, kind) > 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
            "manifests": (manifests(), read_manifests(folder / "a.jsonl")),
            "audio": (audio_files(sounds()), read_sounds(folder)),
            "recipes": (recipes(whole), use_recipe),
            "overrides": (overrides(whole), use_overrides(files[0])),
        }
        for kind, result in results.items():
            for _ in fuzz(result, *tasks[kind], options):
                if options.out:
                    write_json(options.out, [asdict(one) for one in results.values()])
    table = Table("kind", "inputs", "read", "refused by name", "kinds of faults", "slowest (s)", "memory (MB)")
    for one in results.values():
        counts = (one.inputs, one.accepted, one.refused, len(one.faults))
        table.add_row(one.kind, *map(str, counts), f"{one.slowest_s:.2f}", f"+{one.grown_mb:.0f}")
    console = Console(width=120)
    console.print(table)
    for one in results.values():
        for fault, smallest in one.faults.items():
            console.print(f"{one.kind}: {fault}: {smallest[:600]}", markup=False)
    sys.exit(any(one.faults for one in results.values()))


if __name__ == "__main__":
    main()
