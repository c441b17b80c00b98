"""Write the model card of a checkpoint: what it is, how it was trained, on which data, and its scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ossicle.files import write_text
from ossicle.models.saving import locate, read_record

CARD = "README.md"
NOT_STATED = "not stated"
LICENCES = {
    "openai/whisper": "MIT",
    "HuggingFaceTB/SmolLM2": "Apache-2.0",
    "Qwen/Qwen2.5-Coder-0.5B": "Apache-2.0",
    "facebook/hubert": "Apache-2.0",
    "meta-llama/Llama-3.1": "Llama 3.1 Community License",
}
"""Licence of base models by the beginning of their hub id. Others are looked up in the model's own card."""
MOST_SCORES = 40
USE = """```python
from ossicle import SpeechLLM

model = SpeechLLM.from_pretrained("FOLDER OR HUB ID")
print(model.generate("recording.wav", "{instruction}"))
```"""


def write_card(folder: str | Path, *, origin: Path | None = None) -> Path:
    """Write the model card of the checkpoint in ``folder`` as ``README.md`` and return its path.

    Args:
        folder: Folder with a checkpoint.
        origin: Folder of the run or checkpoint that it was loaded from. Its recipe, data and scores are described, and
            its own card is kept if it has one.

    Raises `CheckpointError` if ``folder`` is not a checkpoint.
    """
    path = Path(folder) / CARD
    own = next((origin / name for name in (CARD, "CARD.md") if origin and (origin / name).is_file()), None)
    text = own.read_text(encoding="utf-8") if own else model_card(read_record(folder), origin)
    write_text(path, text)
    return path


def model_card(record: Mapping[str, Any], run: Path | None = None) -> str:
    """Return the model card of a checkpoint with ``record``, which `read_record` returned, in Markdown.

    ``run`` is the folder of the run that trained it, if it is known.
    """
    model = record["model"]
    bases = {part: public_name(str(model.get(part))) for part in ("encoder", "llm")}
    recipe = _recipe(run)
    instruction = record["instructions"].get("asr", "Transcribe the speech.")
    lines = [_front_matter(bases), f"# {_title(recipe, bases)}", ""]
    lines += [
        f"A projector that lets {bases['llm']} listen through {bases['encoder']}. Both are frozen, and are not part of "
        "this folder. Trained with [Ossicle](https://github.com/ossicle-speech/ossicle).",
        "",
        USE.replace("{instruction}", instruction),
        "",
        "## Base models",
        "",
        "| part | model | licence | weights |",
        "|---|---|---|---|",
        *(
            f"| {part} | {name} | {licence(name, str(model.get(part)))} | {record['fingerprints'][part]} |"
            for part, name in bases.items()
        ),
        "",
        "## Training",
        "",
        *_training(record, recipe),
        "",
        "## Data",
        "",
        *_data(recipe, run),
        "",
        "## Scores",
        "",
        *_scores(run),
        "",
        "## Limits",
        "",
        *_limits(record),
    ]
    return "\n".join(lines) + "\n"


def public_name(name: str) -> str:
    """Return the name of a base model for others: a hub id as it is, and of a local folder the last part only."""
    return Path(name).name if Path(name).is_absolute() else name


def licence(name: str, place: str) -> str:
    """Return the licence of the base model ``name`` at ``place``, a folder or hub id, or ``not stated``."""
    card = Path(place) / CARD
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").split("---")
        try:
            found = yaml.safe_load(head[1]) if len(head) > 2 else None
        except yaml.YAMLError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("license"), str):
            return str(found["license"])
    for start, known in LICENCES.items():
        if name.lower().startswith((start.lower(), start.split("/")[1].lower())):
            return known
    return f"{NOT_STATED}: see the card of the model"


def _front_matter(bases: Mapping[str, str]) -> str:
    fields = {
        "library_name": "ossicle",
        "pipeline_tag": "automatic-speech-recognition",
        "base_model": [name for name in bases.values() if "/" in name],
        "tags": ["speech", "speech-llm", "audio", "ossicle"],
    }
    return "---\n" + yaml.safe_dump({k: v for k, v in fields.items() if v}, sort_keys=False) + "---\n"


def _title(recipe: Mapping[str, Any], bases: Mapping[str, str]) -> str:
    return f"{recipe.get('name') or 'Ossicle'}: {bases['encoder']} to {bases['llm']}"


def _training(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    projector, objectives = record["model"].get("projector") or {}, record.get("objectives") or []
    sizes = ", ".join(f"{name} {value}" for name, value in projector.items() if name != "name")
    yield f"- Projector: `{projector.get('name', 'qformer')}` ({sizes})"
    yield f"- Objectives, of the last stage: {', '.join(objectives) or NOT_STATED}"
    if steps := (recipe.get("train") or {}).get("steps"):
        yield f"- Steps of the last stage: {steps:,}, batches of {(recipe.get('data') or {}).get('batch_size')}"
    if rate := (recipe.get("optim") or {}).get("lr"):
        yield f"- Learning rate: {rate}"
    yield f"- Ossicle {record.get('ossicle', NOT_STATED)}"


def _data(recipe: Mapping[str, Any], run: Path | None) -> Iterator[str]:
    manifests = (recipe.get("data") or {}).get("train") or []
    if not manifests:
        yield "The run that trained it is not known here. Describe the data before you share the model."
        return
    yield "| manifest | lines | hours | speakers | languages | licences |"
    yield "|---|---|---|---|---|---|"
    for name in manifests:
        path = Path(name) if Path(name).is_absolute() or run is None else Path.cwd() / name
        yield f"| {path.name} | {' | '.join(_summary(path))} |"


def _summary(manifest: Path) -> list[str]:
    """Return lines, hours, speakers, languages and licences of a manifest, as far as its lines state them."""
    if not manifest.is_file():
        return [NOT_STATED] * 5
    count = 0
    seconds: dict[Any, float] = {}  # of each recording, which can have several lines
    found: dict[str, Counter[str]] = {"speaker": Counter(), "language": Counter(), "license": Counter()}
    with manifest.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            count += 1
            seconds[line.get("audio"), line.get("start_s")] = line.get("duration_s") or 0.0
            for field, values in found.items():
                if line.get(field):
                    values[str(line[field])] += 1
    speakers, languages, licences = found.values()
    hours = f"{sum(seconds.values()) / 3600:.2f}" if any(seconds.values()) else NOT_STATED
    names = [", ".join(sorted(values)) or NOT_STATED for values in (languages, licences)]
    return [f"{count:,}", hours, str(len(speakers) or NOT_STATED), *names]


def _scores(run: Path | None) -> Iterator[str]:
    files = sorted(run.rglob("*.scores.json")) if run else []
    rows = [(path, row) for path in files for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    if not rows:
        yield "None are recorded beside the run. `ossicle evaluate` writes them."
        return
    yield "| file | task | metric | score | 95 % interval | lines |"
    yield "|---|---|---|---|---|---|"
    for path, row in rows[:MOST_SCORES]:
        for metric, score in (row.get("scores") or {}).items():
            interval = (row.get("intervals") or {}).get(metric) or {}
            ends = " to ".join(f"{interval[end]:.1f}" for end in ("low", "high") if end in interval) or "–"
            name = path.name.removesuffix(".scores.json")
            yield f"| {name} | {row.get('task')} | {metric} | {score:.1f} | {ends} | {row.get('n')} |"


def _limits(record: Mapping[str, Any]) -> Iterator[str]:
    tasks = ", ".join(sorted(record["instructions"])) or "none"
    yield f"- Tasks of the training with a fixed instruction: {tasks}. Answers to others are less reliable."
    if longest := record.get("longest_s"):
        yield f"- The longest recording of the training lasts {longest:.1f} s. Longer ones are cut at pauses."
    yield "- It can write words that were not said. Do not use it where a mistake harms somebody."


def _recipe(run: Path | None) -> dict[str, Any]:
    path = None if run is None else locate(run) / "config.yaml"
    if path is None or not path.is_file():
        return {}
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
