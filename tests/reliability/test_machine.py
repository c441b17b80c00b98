"""Signals, dead data workers, full memory, full and read-only disks: the run ends with a message and continues."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ossicle.batch import Batch, LossOutput
from ossicle.errors import ConfigError, TrainingError
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import NextToken
from ossicle.train.checkpoint import latest
from ossicle.train.interrupts import Interruptible
from ossicle.train.loop import train
from ossicle.train.recipe import load
from ossicle.train.tracking import read_metrics

NEXT_TOKEN = {"name": "next_token"}
GRACE_S = 60.0
"""Seconds that a job scheduler may wait before SIGKILL; the run needs about one, and busy machines are slow."""


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == "train"}


def same(one: Path, other: Path) -> bool:
    pair = [load_file(folder / "projector.safetensors") for folder in (one, other)]
    return losses(one) == losses(other) and all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


@dataclass
class Spy:
    """Next-token objective that calls ``act(call)`` before each call; calls are counted from 1."""

    act: object
    needs_negatives = needs_mixed = False
    calls: int = 0

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        self.calls += 1
        self.act(self.calls)
        return NextToken()(model, batch)


def workers_of(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if int(rest.split()[1]) == pid:
            found.append(int(name.split()[0]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the data workers in /proc")
def test_sigterm_to_all_processes_of_a_run_saves_within_the_grace_period(recipe, config):
    """A job scheduler sends it to data workers too, and a launcher passes it on once more."""
    sections = {"objective": NEXT_TOKEN, "data": {"workers": 2, "batch_size": 2}, "train": {"steps": 60}}
    settings = config(**sections)
    command = [sys.executable, "-m", "ossicle", "train", str(recipe(**sections))]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = settings.folder / "metrics.jsonl"
    deadline_s = time.monotonic() + 200
    while not (metrics.is_file() and len(losses(settings.folder)) >= 3 and workers_of(run.pid)):
        assert run.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.01)
    workers = workers_of(run.pid)
    sent_s = time.monotonic()
    for _ in range(2):
        for pid in (*workers, run.pid):
            os.kill(pid, signal.SIGTERM)
        workers = []
    _, said = run.communicate(timeout=GRACE_S)
    print(f"\nended {time.monotonic() - sent_s:.2f} s after SIGTERM")
    assert run.returncode == 0, said
    step = max(losses(settings.folder))
    assert 3 <= step < 60
    assert latest(settings.folder).name == f"step-{step:07d}"
    assert f"stopped at step {step}; saved" in " ".join(said.split())
    resumed = train(settings, resume=True)
    assert same(resumed, train(replace(settings, name="whole")))


def test_sigterm_twice_does_not_stop_at_once():
    with Interruptible() as interrupted:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()


def test_a_dead_data_worker_ends_the_run_with_a_message_and_it_resumes(config):
    def kill(call: int) -> None:
        if call == 4:
            [worker] = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(20)

    sections = {"data": {"workers": 1, "batch_size": 1}, "train": {"steps": 6, "save_every": 2}}
    settings = config(objective=NEXT_TOKEN, **sections)
    with pytest.raises(
        TrainingError, match=r"a data worker has died .*data\.workers.*--resume.*step-000000[24]"
    ) as caught:
        train(settings, objective=Spy(kill))
    assert "\n" not in str(caught.value)
    resumed = train(settings, objective=Spy(lambda call: None), resume=True)
    assert same(resumed, train(replace(settings, name="whole"), objective=Spy(lambda call: None)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of 1"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_full_memory_names_the_batch_and_the_settings(config, error):
    def fail(call: int) -> None:
        if call == 3:
            raise error

    settings = config(data={"batch_size": 3}, train={"steps": 6, "save_every": 2})
    with pytest.raises(
        TrainingError, match=r"memory is full, with a batch of [23] utterances \(.*padded to \([23], \d"
    ) as e:
        train(settings, objective=Spy(fail))
    assert "data.max_batch_s" in str(e.value) and "train.gradient_checkpointing=true" in str(e.value)
    assert "step-0000002" in str(e.value) and "\n" not in str(e.value)


def test_other_errors_are_not_taken_for_full_memory(config):
    def fail(call: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        train(config(), objective=Spy(fail))


SMALL_DISK = Path(__file__).with_name("small_disk.py")
UNSHARE = ["unshare", "--mount", "--map-root-user"]
"""Runs a command in which it may mount a file system that no other process sees."""


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "reason"), [("full", "No space left"), ("readonly", "Read-only file system")])
def test_a_disk_that_becomes_full_or_read_only_costs_no_checkpoint(recipe, config, tmp_path, mode, reason):
    if not can_mount():
        pytest.skip("this machine lets no ordinary process mount a file system of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    sections = {"objective": NEXT_TOKEN, "train": {"steps": 5, "save_every": 2}, "output_dir": str(disk)}
    command = [*UNSHARE, sys.executable, str(SMALL_DISK), str(recipe(**sections)), mode, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert reason in found["said"]
    assert "--resume" in found["said"] and "step-0000002" in found["said"] and "\n" not in found["said"]
    assert found["left"] == ["step-0000002"], "nothing is left of the partial checkpoint"
    whole = train(config(**{**sections, "output_dir": str(tmp_path / "whole")}), objective=Spy(lambda call: None))
    assert found["losses"] == list(losses(whole).values())
    assert found["projector"] == (whole / "projector.safetensors").read_bytes().hex()


def test_a_folder_that_may_not_be_written_is_one_line(recipe):
    """The superuser may write everywhere, so that the test gives up its rights for this."""
    with tempfile.TemporaryDirectory() as folder:  # other users cannot enter the folders of pytest
        Path(folder).chmod(0o555)
        settings = replace(load(recipe()), output_dir=folder)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)
        try:
            with pytest.raises(ConfigError, match=r"created or locked .*Permission denied.*output_dir or name"):
                train(settings)
        finally:
            os.seteuid(user)
            Path(folder).chmod(0o755)
