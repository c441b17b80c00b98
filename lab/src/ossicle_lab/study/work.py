"""Do one job of a study: train, resuming a killed run, decode, score, and write the record last."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossicle.files import write_json
from ossicle_lab.study.job import COST, HYPOTHESES, LOG, STAMP, UTTERANCES, Job, StudyError, read_record

CHECKPOINTS_PER_RUN = 8
LOGS_PER_RUN = 60


def run_job(job: Job) -> float:
    """Do ``job`` with one thread, with its output in its ``log.txt``, and return the seconds that it took.

    The seconds include training by an earlier process. Raises `StudyError` if the job failed or was interrupted; the
    message names the log.
    """
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)
    started, before = time.perf_counter(), float(_trained_before(job).get("seconds", 0.0))
    log = job.folder / LOG
    with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            found = _DO[job.kind](job)
        except Exception as error:
            traceback.print_exc()
            raise StudyError(f"{job.label}: {error} (see {log})") from error
    seconds = round(before + time.perf_counter() - started, 1)
    write_json(job.record_path, {"stamp": read_record(job.folder / STAMP), "seconds": seconds, **found})
    return seconds


def _pretraining(job: Job) -> dict[str, Any]:
    from ossicle_lab.study import measure

    cost = _train(job)
    found: dict[str, Any] = {"steps": job.steps, "cost_s_per_step": cost}
    if job.alignment:
        model = _load(job, job.run_folder)
        found["alignment"] = measure.align(model, measure.cached(job.alignment, model, job.cache))
    return found


def _cell(job: Job) -> dict[str, Any]:
    cost = _train(job)
    return {"steps": job.steps, "cost_s_per_step": cost, **_score(job, _load(job, job.run_folder), from_text=False)}


def _bound(job: Job) -> dict[str, Any]:
    """Score the LLM on the transcripts, as an upper bound for speech."""
    device = _device(job)
    model = job.settings().model.build(device).eval()
    return _score(job, model.to(device), from_text=True)


_DO = {"pretraining": _pretraining, "cell": _cell, "trial": _cell, "bound": _bound}


def _train(job: Job) -> float | None:
    """Train, or finish training, and return the seconds of a step, or None if a kill left no measurement.

    On the CPU the seconds are the process's own time, elsewhere wall time.
    """
    from ossicle.models.saving import CONFIG_FILE
    from ossicle.train.checkpoint import CHECKPOINTS, latest
    from ossicle.train.loop import train

    settings = job.settings()
    if (job.run_folder / CONFIG_FILE).is_file():  # an earlier process trained it
        cost: float | None = _trained_before(job).get("s_per_step")
        return cost
    often = max(1, job.steps // CHECKPOINTS_PER_RUN)
    logged = max(1, min(settings.train.log_every, job.steps // LOGS_PER_RUN))
    settings = replace(settings, train=replace(settings.train, save_every=often, log_every=logged))
    checkpoint = latest(job.run_folder)
    first = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    clock = time.process_time if job.device == "cpu" else time.perf_counter
    started, begun = clock(), time.perf_counter()
    train(settings, resume=checkpoint is not None)
    if not (job.run_folder / CONFIG_FILE).is_file():
        raise StudyError("interrupted; the same command continues")
    cost = (clock() - started) / (job.steps - first) if job.steps > first else None
    write_json(job.folder / COST, {"s_per_step": cost, "seconds": time.perf_counter() - begun})
    shutil.rmtree(job.run_folder / CHECKPOINTS)  # large, and not needed after the last step
    return cost


def _trained_before(job: Job) -> dict[str, Any]:
    path = job.folder / COST
    return read_record(path) if path.is_file() else {}


def _score(job: Job, model: Any, *, from_text: bool) -> dict[str, Any]:
    from ossicle.evaluate.hypotheses import read_hypotheses
    from ossicle.prompts import task_key
    from ossicle_lab.study import measure
    from ossicle_lab.study.interval import utterance_counts

    rows = measure.decode_and_score(
        model,
        measure.cached(job.test, model, job.cache),
        job.folder / HYPOTHESES,
        from_text=from_text,
        batch_size=job.decode_batch,
        max_new_tokens=job.max_new_tokens,
    )
    found = read_hypotheses(job.folder / HYPOTHESES)
    write_json(job.folder / UTTERANCES, utterance_counts(found, measure.test_sets(job.test)))
    return {"scores": {task_key(row["task"], row["target_language"]): row["scores"] for row in rows}}


def _load(job: Job, folder: Path) -> Any:
    from ossicle.models.speech_llm import SpeechLLM

    device = _device(job)
    return SpeechLLM.from_pretrained(folder, device=device).to(device)


def _device(job: Job) -> Any:
    import torch

    return torch.device("cuda" if job.device == "auto" and torch.cuda.is_available() else "cpu")
