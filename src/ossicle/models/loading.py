"""Load models of transformers: silence what it prints, explain its errors, and refuse incomplete weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ossicle.errors import ConfigError, MissingPackageError, ModelError, OssicleError
from ossicle.prompts import ChatTemplate

MOST_MESSAGE = 300
"""Characters of another library's message that an error repeats."""
MASK_EMBEDDING = "masked_spec_embed"
"""Vector that replaces masked frames in pretraining. Many published encoders lack it and no frozen encoder uses it."""


@contextmanager
def loading_model(setting: str, name: str) -> Iterator[None]:
    """Silence what transformers prints while it loads the model ``name``, and explain its errors, inside the block.

    Any error becomes a `ModelError` of one line that begins with ``setting`` and ``name``. The report of weights is
    always silenced: unused weights belong to a head that is left out on purpose, and `refuse_missing` reports missing
    ones. The progress bar is silenced in log files and for weights in one local file.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if not _is_sharded(name) or not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    except OssicleError:
        raise
    except Exception as error:  # transformers raises errors of many kinds for files that are no model
        raise _load_error(setting, name, error) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def refuse_missing(setting: str, report: dict[str, Any]) -> None:
    """Raise `ModelError` if transformers initialised weights at random because the files lack them.

    Args:
        setting: The setting to name in the message, e.g. ``model.llm=folder``.
        report: The loading information of ``from_pretrained(..., output_loading_info=True)``.
    """
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(MASK_EMBEDDING))
    if missing:
        raise ModelError(
            f"{setting}: the files lack {len(missing)} weights of its architecture, such as {missing[0]}, "
            "which would be random: check the folder and its config.json"
        )


def _load_error(setting: str, name: str, error: Exception) -> ModelError:
    """Return what is wrong with the folder or the hub id ``name``, in one line."""
    path, where = Path(name), f"{setting}={name[:MOST_MESSAGE]}"
    folder = _is_folder(name)
    if folder and not (path / "config.json").is_file():
        return ModelError(f"{where}: the folder has no config.json, so that it is no model of transformers; check it")
    if not folder and len(name) <= MOST_MESSAGE and path.is_file():
        return ModelError(f"{where} is a file: name the folder of the model")
    if not folder and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        base = "" if path.is_absolute() else f" (relative to {Path.cwd()})"
        return ModelError(f"{where}: there is no such folder{base}; check the path")
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if folder:
        return ModelError(f"{where} does not load: {said[:MOST_MESSAGE]}; check its files")
    return ModelError(
        f"{where}: there is no such folder in {Path.cwd()}, and the model hub does not provide it; check the name "
        f"({said[:MOST_MESSAGE]})"
    )


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # the name is too long, or no path at all
        return False


def _is_sharded(name: str) -> bool:
    """Return False for a local folder with its weights in one file, which loads at once."""
    return not _is_folder(name) or any(Path(name).glob("*.index.json"))


def load_causal_lm(
    name: str, dtype: torch.dtype, bits: int | None = None, device: torch.device | None = None
) -> tuple[Any, Any]:
    """Return the language model and the tokenizer of ``name``; arguments and errors as of `load_llm`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ModelError(f"model.llm={name} has no chat template; use an instruction-tuned model")
    ChatTemplate.of(tokenizer)  # before gigabytes are read
    options: dict[str, Any] = placement(device) if bits is None else _quantised(bits, dtype)
    options["trust_remote_code"] = False
    model, report = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    refuse_missing(f"model.llm={name}", report)
    return _language_model(model), tokenizer


def placement(device: torch.device | None) -> dict[str, Any]:
    """Return the arguments with which transformers loads weights to ``device``, without a copy in the CPU's memory."""
    return {} if device is None or device.type == "cpu" else {"device_map": {"": device}}


def _language_model(model: Any) -> Any:
    """Return the causal language model in ``model``, which may read images too."""
    from transformers import AutoModelForCausalLM

    config = model.config.get_text_config()
    if config is model.config:
        return model
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(config)
    alone.model, alone.lm_head = model.model.language_model, model.lm_head
    alone.generation_config = model.generation_config
    return alone


def _quantised(bits: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments for loading with bitsandbytes, onto the GPU of this process."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ConfigError(f"model.llm_dtype=int{bits} needs an NVIDIA GPU: set model.llm_dtype=bfloat16")
    if find_spec("bitsandbytes") is None:
        raise MissingPackageError(f"model.llm_dtype=int{bits} needs bitsandbytes: pip install bitsandbytes")
    stored = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
    )
    return {"quantization_config": stored, "device_map": {"": torch.cuda.current_device()}}
