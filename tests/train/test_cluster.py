"""The launch files print what they would run, and run it: torchrun for real, SLURM with stand-ins for its commands."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from ossicle import recipes
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.train.tracking import read_metrics
from places import CORE_RECIPES, ROOT

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the launch files need bash")
FOLDER = CORE_RECIPES / "cluster"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh"))
AWKWARD = ["recipe.yaml", "data.train=[a b.jsonl]", "name=$(touch made)", "--resume"]
HANG_S = 300.0
# Start the command of `srun` once for each task, and pass SIGTERM on to all of them.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
options, command = sys.argv[1:sys.argv.index("bash")], sys.argv[sys.argv.index("bash"):]
ranks = [str(rank) for rank in range(int(options[options.index("--ntasks") + 1]))]
tasks = [subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": r, "SLURM_LOCALID": r}}) for r in ranks]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
open("started", "a").write("x")
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "$@" >> requeued; fi
"""
JOB = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "1"}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Make a folder with stand-ins for the commands of a cluster; the launchers only note that they were started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    note = "#!/usr/bin/env bash\ntouch started\n"
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "torchrun": note, "accelerate": note}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """Return the environment without the settings of a job or of a machine with GPUs, and with ``folders`` in PATH."""
    path = os.pathsep.join(map(str, [*folders, Path(sys.executable).parent, os.environ["PATH"]]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PROCESSES", "OMP_"))}
    return {**kept, "PATH": path, **more}


def launch(script: str, *arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(FOLDER / script), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)


def dry(script: str, commands: Path, *arguments: str, **more: str) -> tuple[list[str], list[str]]:
    """Return the lines before the command, and the words of the command, that ``--dry-run`` prints."""
    done = launch(script, "--dry-run", *arguments, cwd=commands.parent, env=environment(commands, **more))
    assert (done.returncode, done.stderr) == (0, "")
    assert not any((commands.parent / name).exists() for name in ("started", "made", "requeued"))
    *lines, command = done.stdout.splitlines()
    return lines, shlex.split(command)


def test_torchrun_prints_its_environment_and_command(commands):
    lines, command = dry("torchrun.sh", commands, *AWKWARD, PROCESSES="3", OMP_NUM_THREADS="5")
    assert lines == ["OMP_NUM_THREADS=5"]
    assert command[0] == "torchrun"
    options = get_args_parser().parse_args(command[1:])
    assert (options.standalone, options.nnodes, options.nproc_per_node, options.module) == (True, "1", "3", True)
    assert [options.training_script, *options.training_script_args] == ["ossicle", "train", *AWKWARD]


@pytest.mark.parametrize("processes", [1, 3])
def test_accelerate_prints_its_environment_and_command(processes, commands):
    lines, command = dry("accelerate.sh", commands, *AWKWARD, PROCESSES=str(processes), OMP_NUM_THREADS="5")
    assert lines == ["OMP_NUM_THREADS=5"]
    assert command[:2] == ["accelerate", "launch"]
    options = launch_command_parser().parse_args(command[2:])
    assert (options.num_processes, options.num_machines, options.multi_gpu) == (processes, 1, processes > 1)
    assert (options.mixed_precision, options.dynamo_backend, options.module) == ("no", "no", True)
    assert [options.training_script, *options.training_script_args] == ["ossicle", "train", *AWKWARD]


def test_threads_share_the_cpus(commands):
    many = {"PROCESSES": str(4 * (os.cpu_count() or 1))}
    assert dry("torchrun.sh", commands, "r", **many)[0] == ["OMP_NUM_THREADS=1"]
    online = int(subprocess.run(["getconf", "_NPROCESSORS_ONLN"], capture_output=True, text=True, check=True).stdout)
    assert dry("torchrun.sh", commands, "r", PROCESSES="1")[0] == [f"OMP_NUM_THREADS={online}"]


def test_slurm_prints_its_options_environment_and_command(commands):
    lines, command = dry("slurm.sh", commands, *AWKWARD)
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(options)
    expected = ["MASTER_ADDR=127.0.0.1", "MASTER_PORT=20000", "WORLD_SIZE=4", "OMP_NUM_THREADS=8"]
    assert lines[len(options) :] == expected
    assert command[0] == "srun" and command[-len(AWKWARD) - 4 :] == ["python", "-m", "ossicle", "train", *AWKWARD]
    assert {"--ntasks", "--kill-on-bad-exit=1"} <= set(command)


def test_slurm_takes_machines_tasks_and_port_from_the_job(commands):
    job = {**JOB, "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
    job |= {"SLURM_CPUS_PER_TASK": "6", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_RESTART_COUNT": "0"}
    lines, command = dry("slurm.sh", commands, "paper/asr", **job)
    assert lines[-4:] == ["MASTER_ADDR=node-a", "MASTER_PORT=21234", "WORLD_SIZE=16", "OMP_NUM_THREADS=6"]
    assert " ".join(command).startswith("srun --nodes 2 --ntasks 16 --ntasks-per-node 8 --cpus-per-task 6 --kill-on")
    assert command[-2:] == ["train", "paper/asr"]
    again = dry("slurm.sh", commands, "paper/asr", **{**job, "SLURM_RESTART_COUNT": "2"})[1]
    assert again == [*command, "--resume"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_missing_recipe_is_named(script, commands):
    for arguments in ([], ["--dry-run"]):
        done = launch(script, *arguments, cwd=commands.parent, env=environment(commands))
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"{script}: the recipe is missing: ")


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "message"),
    [
        ("torchrun.sh", ["r"], {"PROCESSES": "two"}, "PROCESSES is 'two': set it to the number of processes"),
        ("torchrun.sh", ["r"], {"PROCESSES": "0"}, "PROCESSES is '0': set it to the number of processes"),
        ("accelerate.sh", ["r"], {"PROCESSES": "2"}, "no GPU was found: use torchrun.sh"),
        ("slurm.sh", ["r"], {}, "this is not a SLURM job: submit it with sbatch"),
        ("slurm.sh", ["r"], {**JOB, "SLURM_GPUS_ON_NODE": "8"}, "2 tasks and 8 GPUs on each machine"),
    ],
)
def test_what_cannot_run_is_refused(script, arguments, settings, message, commands):
    if "no GPU" in message and shutil.which("nvidia-smi"):
        pytest.skip("this machine may have a GPU")
    done = launch(script, *arguments, cwd=commands.parent, env=environment(commands, **settings))
    assert done.returncode == 2 and f"{script}: {message}" in done.stderr
    assert not (commands.parent / "started").exists()


def test_the_files_are_package_data_and_no_recipes():
    packaged = {path.name for path in (files("ossicle.recipes") / "cluster").iterdir()}
    assert {"accelerate.sh", "slurm.sh", "torchrun.sh"} <= packaged
    assert not [name for name in recipes.names() if name.startswith("cluster")]


@pytest.mark.parametrize("page", [ROOT / "docs/scaling.md", FOLDER / "README.md"], ids=lambda page: page.name)
def test_pages_show_every_launch_file(page):
    text = page.read_text(encoding="utf-8")
    assert all(f"`{script}`" in text and f"bash {script} --dry-run" in text for script in SCRIPTS)


def start_job(commands: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start the batch script as SLURM does, from a copy of another name."""
    spooled = commands.parent / "slurm_script"
    shutil.copy(FOLDER / "slurm.sh", spooled)
    env = environment(commands, **JOB, **more)
    with (commands.parent / "job.log").open("a") as log:
        return subprocess.Popen(["bash", spooled, *arguments], cwd=spooled.parent, env=env, stdout=log, stderr=log)


@pytest.mark.parametrize(
    ("task", "signalled", "code", "requeued"),
    [
        ("exit 0", False, 0, False),
        ("exit 3", False, 3, False),
        ("trap 'exit 0' TERM; touch ready-$RANK; while :; do sleep 0.05; done", True, 0, True),
        ("trap 'exit 3' TERM; touch ready-$RANK; while :; do sleep 0.05; done", True, 3, False),
    ],
)
def test_a_job_is_queued_again_only_if_its_run_has_saved_a_checkpoint(task, signalled, code, requeued, commands):
    python = commands / "python"
    python.write_text(f"#!/usr/bin/env bash\n{task}\n")
    python.chmod(0o755)
    job = start_job(commands, "r")
    if signalled:
        for name in ("ready-0", "ready-1", "started"):
            wait_for(commands.parent / name, job)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(HANG_S) == code
    found = commands.parent / "requeued"
    assert (found.read_text() if found.exists() else "") == ("requeue 41234\n" if requeued else "")


def wait_for(path: Path, job: subprocess.Popen[str]) -> None:
    """Wait until ``path`` has content or, if it is a mark of the test, exists."""
    deadline_s = time.monotonic() + HANG_S
    while not path.exists() or (path.suffix == ".jsonl" and not path.stat().st_size):
        assert job.poll() is None, (path.parent / "job.log", path)
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.slow
def test_a_job_near_its_limit_saves_is_queued_again_and_resumes(recipe: Any, commands: Path) -> None:
    path, run = recipe(train={"steps": 40, "save_every": 1000}), commands.parent / "runs/run"
    job = start_job(commands, str(path))
    wait_for(run / "metrics.jsonl", job)
    job.send_signal(signal.SIGUSR1)
    log = commands.parent / "job.log"
    assert job.wait(HANG_S) == 0, log.read_text()
    assert "stopped at step" in log.read_text() and "the job is queued again" in log.read_text()
    assert (commands.parent / "requeued").read_text() == "requeue 41234\n"
    stopped = steps(run)[-1]
    assert 0 < stopped < 40 and not (run / WEIGHTS_FILE).exists()

    assert start_job(commands, str(path), SLURM_RESTART_COUNT="1").wait(HANG_S) == 0, log.read_text()
    assert f"resumed at {stopped}" in log.read_text()
    assert steps(run) == list(range(1, 41)) and (run / WEIGHTS_FILE).exists()
    assert (commands.parent / "requeued").read_text() == "requeue 41234\n"


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(recipe: Any, tmp_path: Path) -> None:
    path = recipe(train={"steps": 2})
    done = launch("torchrun.sh", str(path), cwd=tmp_path, env=environment(PROCESSES="2", OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("run train step 1/2") == 1
    alone = recipe(name="alone", train={"steps": 2})
    subprocess.run([sys.executable, "-m", "ossicle", "train", str(alone)], cwd=tmp_path, check=True)
    # Two processes compare the texts of both halves: their first loss is that of eight utterances, not of four.
    first = {name: read_metrics(tmp_path / "runs" / name / "metrics.jsonl")[0] for name in ("run", "alone")}
    assert first["run"]["loss"] > first["alone"]["loss"] * 1.2
