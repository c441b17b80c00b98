"""Profiles of a run, and the places where a training step waits for its device.

On a GPU a step waits where the host reads a number of the device: by `Tensor.item`, `tolist`, `cpu`, `bool` and the
like, and by operators whose output has a size that depends on values (`nonzero`, indexing by a mask). A CPU never
waits, but calls the same functions. `Waits` counts them by place.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import ossicle
from ossicle.errors import TrainingError
from ossicle.losses import sinkhorn, sinkhorn_torch
from ossicle.models import prefix
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.train import profiling
from ossicle.train.loop import Loop, train
from ossicle.train.profiling import FOLDER, TABLE_FILE, TRACE_FILE, phases, profiled
from ossicle.train.tracking import read_metrics
from places import ROOT

PAGE = ROOT / "docs" / "scaling.md"
SOURCE = Path(ossicle.__file__).parent
OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "equal"}
"""Operators that wait on a GPU. Indexing by a mask waits too, and is recognised by the type of the index."""
METHODS = ("tolist", "cpu", "numpy")
"""Methods that copy to the host. On a CPU they call no operator that could be counted."""
ON_THE_HOST = {
    "data/collate.py:padding_share": "the batch, before it goes to the device",
    "losses/sinkhorn_problem.py:padded_rows": "a tensor that was made from a list",
    "models/packing.py:lengths": "attention on a CPU; a GPU takes the whole batch",
}
"""Places whose tensors are in the host's memory, with the tensor: they never wait."""
COMMON = {
    "models/encoder.py:forward": 1,
    "models/features.py:last_hidden_state": 1,
    "models/projectors.py:forward": 1,
    "train/steps.py:any_process": 1,
}
WAITS = {
    "cosine": {**COMMON, "losses/contrastive.py:mean_pool": 2, "models/packing.py:of": 2},
    "wasserstein": {
        **COMMON,
        "losses/sinkhorn.py:forward": 4,
        "losses/sinkhorn_problem.py:from_mask": 8,
        "losses/sinkhorn_torch.py:_anneal": 12,
        "losses/sinkhorn_torch.py:solve": 12,
        "models/packing.py:of": 2,
    },
    "next_token": {
        **COMMON,
        "models/packing.py:join": 1,
        "models/packing.py:of": 1,
        "objectives/next_token.py:states_before_labels": 1,
    },
}
"""Most waits of a step at each place, for the tiny models: a HuBERT, a Q-Former and an LLM with four hidden states."""
OBJECTIVES = {
    "cosine": {"name": "contrastive"},
    "wasserstein": {"name": "contrastive", "similarity": "wasserstein"},
    "next_token": {"name": "next_token"},
}


class Waits(TorchDispatchMode):
    """Count what would wait for a GPU, by the innermost place in Ossicle's code (``file.py:function``)."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATORS or (name.lstrip("_").startswith("index") and _by_mask(name, *args)):
            self.count()
        return func(*args, **(kwargs or {}))

    def count(self) -> None:
        if self.on:
            self.places[_place()] += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count inside the block: a counted method may call a counted operator."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


def _by_mask(name: str, values: Any, indices: Any, new: Any = None, *_: Any) -> bool:
    """Return True for an index by a mask, except where it sets all places to one number, which is a masked fill."""
    masks = isinstance(indices, list) and any(
        isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices
    )
    return masks and not ("put" in name and new.numel() == 1)


def _place() -> str:
    """Return the innermost function of Ossicle on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            return f"{path.relative_to(SOURCE).as_posix()}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Yield the number of waits at each place, which grows inside the block."""
    waits = Waits()
    with monkeypatch.context() as patch, waits:
        for name in METHODS:
            patch.setattr(torch.Tensor, name, _counting(getattr(torch.Tensor, name), waits))
        yield waits.places


def _counting(method: Callable[..., Any], waits: Waits) -> Callable[..., Any]:
    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.numel():  # nothing is copied of an empty tensor
            waits.count()
        with waits.paused():
            return method(tensor, *args, **kwargs)

    return call


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the paths of a GPU where they differ: PyTorch's solver, and no shared prefix of the chat turns."""
    monkeypatch.setattr(sinkhorn, "select_solver", lambda *_: sinkhorn_torch)
    monkeypatch.setattr(prefix, "shared_prefix", lambda *_: ())


@pytest.mark.parametrize("name", WAITS)
def test_a_step_waits_for_the_device_in_known_places_only(name, config, as_on_a_gpu, monkeypatch):
    found: list[Counter[str]] = []
    plain_step = Loop.step

    def step(self: Loop, batches: Any, tracker: Any) -> None:
        if self.trainer.position.step != 2:  # neither the first step, which fills caches, nor a logged one
            return plain_step(self, batches, tracker)
        ready = iter([next(batches)])
        with counted(monkeypatch) as places:
            plain_step(self, ready, tracker)
        found.append(places)

    monkeypatch.setattr(Loop, "step", step)
    train(config(objective=OBJECTIVES[name], train={"steps": 4, "log_every": 100}))
    [places] = found
    waits = {place: count for place, count in sorted(places.items()) if place not in ON_THE_HOST}
    print(f"\n{name}: {sum(waits.values())} waits in a step: {waits}")
    assert waits["train/steps.py:any_process"] == 1  # the counter works
    assert not {place: count for place, count in waits.items() if count > WAITS[name].get(place, 0)}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loop_itself_waits_once_in_a_step(accumulate, config, monkeypatch):
    """Check whether the loss is finite; all other waits belong to the model and the objective."""
    with counted(monkeypatch) as places:
        train(config(train={"steps": 3, "accumulate": accumulate, "log_every": 100}))
    assert places["train/steps.py:any_process"] == 3


def test_docs_list_the_places_with_their_numbers():
    rows = re.findall(r"^\| `([\w./]+)`, `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name: {} for name in WAITS}
    for file, function, *numbers in rows:
        for name, number in zip(WAITS, numbers, strict=True):
            if number:
                listed[name][f"{file}:{function}"] = int(number)
    assert listed == WAITS


@pytest.mark.parametrize(
    ("action", "count"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: int(x.sum()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: x.clone().index_put_((x > 1,), x[:2]), 1),
        (lambda x: x.clone().index_put_((x > 1,), x.new_tensor(0)), 0),
        (lambda x: x.masked_fill(x > 1, 0), 0),
        (lambda x: (x > 1).nonzero_static(size=2), 0),
        (lambda x: x[:0].tolist(), 0),
        (lambda x: x[torch.tensor([0, 2])].sum() + x.amax(), 0),
        (lambda x: x.requires_grad_()[x.detach() > 1].sum().backward(), 2),
    ],
)
def test_waits_are_counted(action, count, monkeypatch):
    x = torch.arange(4.0)
    with counted(monkeypatch) as places:
        action(x)
    assert sum(places.values()) == count


def trace(folder: Path) -> set[str]:
    """Return the names of the events of a run's trace."""
    events = json.loads(gzip.decompress((folder / FOLDER / TRACE_FILE).read_bytes()))["traceEvents"]
    return {event["name"] for event in events}


def steps_of(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("ProfilerStep")}


def results(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")], load_file(folder / WEIGHTS_FILE)


def test_a_profile_has_three_early_steps_and_changes_no_number(config):
    plain = train(config(name="plain", train={"steps": 12}))
    folder = train(config(name="profiled", train={"steps": 12, "profile": True}))
    names = trace(folder)
    assert steps_of(names) == {"ProfilerStep#7", "ProfilerStep#8", "ProfilerStep#9"}
    assert {"aten::mm", "aten::native_layer_norm"} <= names
    table = (folder / FOLDER / TABLE_FILE).read_text()
    assert "Self CPU time total" in table and "aten::" in table and table.count("\n") < 60
    (losses, weights), (other_losses, other_weights) = results(plain), results(folder)
    assert losses == other_losses and len(losses) == 12
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_without_the_setting_no_profiler_exists(config, monkeypatch):
    monkeypatch.setattr(torch.profiler, "profile", None)
    folder = train(config())
    assert not (folder / FOLDER).exists()
    with profiled(config(), 4) as end_step:
        assert end_step is profiling._nothing


def test_only_the_first_process_records(config, monkeypatch):
    monkeypatch.setattr(PartialState, "is_main_process", False)
    with profiled(config(train={"profile": True}), 4) as end_step:
        assert end_step is profiling._nothing


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1000, (5, 2, 3)),
        (10, (5, 2, 3)),
        (8, (3, 2, 3)),
        (5, (0, 2, 3)),
        (4, (0, 2, 2)),
        (2, (0, 1, 1)),
        (1, (0, 0, 1)),
    ],
)
def test_the_phases_of_a_short_run_end_with_its_last_step(steps, expected):
    assert phases(steps) == expected


def test_an_interrupted_profile_has_the_steps_until_then(config):
    run = config(train={"profile": True})
    run.folder.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), profiled(run, 100) as end_step:
        for _ in range(8):
            torch.ones(2) + 1
            end_step()
        raise KeyboardInterrupt
    assert "ProfilerStep#7" in trace(run.folder)


def test_a_file_in_the_place_of_the_folder_is_named(config):
    run = config(train={"steps": 3, "profile": True})
    run.folder.mkdir(parents=True)
    (run.folder / FOLDER).touch()
    with pytest.raises(TrainingError, match=r"profile: the profile cannot be written .* set train.profile=false"):
        train(run)
