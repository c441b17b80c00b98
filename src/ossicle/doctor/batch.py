"""Load one batch as training would, and show what the model reads and which tokens are labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from accelerate import Accelerator
from rich.console import Console
from rich.text import Text

from ossicle.batch import Batch
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Objective
from ossicle.objectives.depth import at_full_depth
from ossicle.precision import new_accelerator
from ossicle.private import reset_accelerator_state
from ossicle.train.batches import Data
from ossicle.train.recipe import Config

SHOWN = 3
"""Number of samples that are printed."""


@dataclass
class Loaded:
    """A batch on the device of the run, with its data set and the objective."""

    batch: Batch
    data: Data
    objective: Objective
    accelerator: Accelerator


def load_batch(config: Config, model: SpeechLLM) -> Loaded:
    """Load the first batch of the run, without caches. Raises `ConfigError` for settings that do not fit."""
    reset_accelerator_state()
    accelerator = new_accelerator(config.train.precision, cpu=config.train.cpu)
    objective = at_full_depth(config.objective.build())
    quiet = replace(config.data, cache_frames=False, cache_text=False, on_error="skip", workers=0)
    data = Data.load(quiet, model, accelerator, objective=objective)
    model.to(accelerator.device)
    batch = next(batch for batch in data.epoch(0) if len(batch) > 0)
    return Loaded(batch.to(accelerator.device), data, objective, accelerator)


def show_samples(config: Config, model: SpeechLLM, batch: Batch, console: Console) -> None:
    """Print the first samples as the LLM receives them; labels are bold."""
    tokenizer = model.llm.tokenizer
    for row, sample in enumerate(batch.samples[:SHOWN]):
        line = Text("  ")
        if batch.mixed is not None:
            read = tokenizer.decode(batch.mixed.text.values[row][batch.mixed.written[row]])
            line.append(f"{sample.id} (mixed; the words that stay text): ", "dim").append(read)
        elif config.objective.name == "next_token" and batch.chat is not None:
            parts = [
                tokenizer.decode(part.values[row][part.mask[row]])
                for part in (batch.chat.before, batch.chat.after, batch.chat.answer)
            ]
            line.append(f"{sample.id}: ", "dim").append(_visible(parts[0]), "dim").append("<speech>", "magenta")
            line.append(_visible(parts[1]), "dim").append(_visible(parts[2]), "bold green")
        elif batch.text is not None:
            ids = batch.text.values[row][batch.text.mask[row]]
            pieces = " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
            line.append(f"{sample.id} ({len(ids)} tokens): ", "dim").append(pieces)
        console.print(line, soft_wrap=True)


def _visible(text: str) -> str:
    return text.replace("\n", "\\n")
