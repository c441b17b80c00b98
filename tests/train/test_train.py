import json
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from ossicle import precision
from ossicle.batch import Batch, LossOutput
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import ConfigError, DataError
from ossicle.inspect.alignment import alignment_report
from ossicle.inspect.states import pooled_states
from ossicle.models.saving import WEIGHTS_FILE, read_record
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, NextToken, Objective
from ossicle.testing import tiny_manifest
from ossicle.train import dev_alignment
from ossicle.train.cache_fill import fill_caches
from ossicle.train.interrupts import Interruptible
from ossicle.train.loop import train
from ossicle.train.recipe import Config, load
from ossicle.train.tracking import read_metrics


@dataclass
class Spy:
    """Objective that calls ``watch(model, batch, call)`` before each call; calls are counted from 1."""

    objective: Objective
    watch: object
    needs_negatives: bool = False
    needs_mixed: bool = False
    calls: int = 0
    ids: list[list[str]] = field(default_factory=list)

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        self.calls += 1
        self.ids.append([sample.id for sample in batch.samples])
        self.watch(model, batch, self.calls)
        return self.objective(model, batch)


def losses(folder: Path, split: str = "train") -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == split}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE)


def states(model: SpeechLLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# The next-token loss of a frozen LLM with random weights falls only a little.
@pytest.mark.parametrize(("objective", "factor"), [({"name": "contrastive"}, 0.8), ({"name": "next_token"}, 0.995)])
def test_the_loss_falls(config, objective, factor):
    training = {"steps": 24, "log_every": 12}
    folder = train(config(objective=objective, train=training, optim={"lr": 1e-2}, data={"batch_size": 8}))
    by_step = losses(folder)
    assert list(by_step) == [1, 12, 24]
    assert by_step[24] < factor * by_step[1]


def test_only_the_projector_changes(config):
    seen = {}

    def watch(model: SpeechLLM, batch: Batch, call: int) -> None:
        seen.setdefault("before", states(model))
        seen["model"] = model

    train(config(), objective=Spy(Contrastive(), watch))
    after = states(seen["model"])
    changed = {name for name, before in seen["before"].items() if not torch.equal(before, after[name])}
    frozen = {name for name in after if not name.startswith("projector.")}
    assert not changed & frozen
    assert changed >= {name for name in after if name.endswith(".weight") and name not in frozen}
    assert all(
        parameter.grad is None for parameter in (*seen["model"].encoder.parameters(), *seen["model"].llm.parameters())
    )


def test_a_runs_folder_is_a_checkpoint_and_says_where_it_came_from(config, task_manifest):
    settings = config(
        data={"train": [str(task_manifest)]}, objective={"name": "next_token"}, train={"tensorboard": True}
    )
    folder = train(settings)
    assert folder == settings.folder
    cache_dir = str(Path(settings.data.cache_dir).resolve())
    assert load(folder / "config.yaml") == replace(settings, data=replace(settings.data, cache_dir=cache_dir))
    assert list((folder / "tensorboard").glob("events*"))
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__
    assert {"commit", "command", "started", "python"} <= set(versions)
    assert read_record(folder)["instructions"] == {"asr": "repeat", "st/de": "translate to german"}
    last = sorted((folder / "checkpoints").iterdir())[-1]
    assert {name: t.tolist() for name, t in weights(folder).items()} == {
        n: t.tolist() for n, t in weights(last).items()
    }
    assert SpeechLLM.from_pretrained(folder).projector.num_queries == 2


def test_what_is_logged(config):
    folder = train(config(train={"steps": 3}))
    first, *_ = read_metrics(folder / "metrics.jsonl")
    assert first["loss"] == pytest.approx(sum(first[f"part/contrastive/{layer}"] for layer in range(4)), rel=1e-5)
    assert first["audio_s_per_s"] > 0
    assert 0 < first["padding"] < 1
    assert first["grad_norm"] > 0
    assert 0 < first["lr"] <= 3e-3


class Killed(Exception):
    """Raised in place of a kill of the process, so that no code cleans up."""


# Dropout is 0.1. Epochs have three batches and steps two, so that the kill and the checkpoints fall inside epochs.
INTERRUPTED = {"data": {"batch_size": 3}, "train": {"steps": 6, "accumulate": 2, "save_every": 2}}


@pytest.mark.parametrize("objective", [Contrastive(layers=[0, 2]), NextToken()])
def test_a_killed_run_continues_as_if_nothing_had_happened(config, objective):
    def die(model: SpeechLLM, batch: Batch, call: int) -> None:
        if call == 8:  # in the middle of step 4; the newest checkpoint is that of step 2
            raise Killed

    whole_data, resumed_data = Spy(objective, lambda *_: None), Spy(objective, lambda *_: None)
    whole = train(config(name="whole", **INTERRUPTED), objective=whole_data)
    with pytest.raises(Killed):
        train(config(name="killed", **INTERRUPTED), objective=Spy(objective, die))
    resumed = train(config(name="killed", **INTERRUPTED), objective=resumed_data, resume=True)
    assert resumed_data.ids == whole_data.ids[4:]
    assert list(losses(resumed)) == list(range(1, 7))
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_dropout_is_on_in_training(config):
    """Check that dropout acts: otherwise the test above says nothing about the random state."""
    drops, none = (
        train(config(name=f"dropout{p}", model={"projector": {**config().model.projector.__dict__, "dropout": p}}))
        for p in (0.1, 0.0)
    )
    assert losses(drops)[1] != losses(none)[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_saves_and_says_how_to_resume(config, capsys, workers):
    def press(model: SpeechLLM, batch: Batch, call: int) -> None:
        if call == 5:  # a terminal sends it to every process
            for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
                os.kill(pid, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    settings = {**INTERRUPTED, "data": {"batch_size": 3, "workers": workers}}
    whole = train(config(name="whole", **INTERRUPTED), objective=Spy(NextToken(), lambda *_: None))
    folder = train(config(name="stopped", **settings), objective=Spy(NextToken(), press))
    assert signal.getsignal(signal.SIGINT) is before
    said = " ".join(capsys.readouterr().err.split())
    assert "stopped at step 3; saved" in said
    assert "Run the same command with --resume to continue." in said
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-0000002", "step-0000003"]
    train(config(name="stopped", **settings), objective=Spy(NextToken(), lambda *_: None), resume=True)
    assert losses(folder) == losses(whole)


def test_a_second_ctrl_c_stops_at_once():
    with Interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_newest_and_the_best_checkpoints_are_kept(config, manifest):
    data = {"dev": [str(manifest)], "batch_size": 4}
    folder = train(
        config(data=data, optim={"lr": 0.5}, train={"steps": 6, "save_every": 1, "eval_every": 2, "keep": 2})
    )
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-0000005", "step-0000006"]
    dev = losses(folder, "dev")
    assert list(dev) == [2, 4, 6]
    best = json.loads((folder / "best" / "progress.json").read_text())
    assert (best["best"], best["step"]) == (min(dev.values()), min(dev, key=dev.get))
    assert set(weights(folder / "best")) == set(weights(folder))


def test_the_development_loss_is_that_of_the_saved_model_without_dropout(config, manifest, collate):
    data = {"dev": [str(manifest)], "batch_size": 8}
    folder = train(config(data=data, train={"steps": 3, "eval_every": 3}))
    model = SpeechLLM.from_pretrained(folder)
    with torch.no_grad():
        by_hand = Contrastive()(model, collate(model, manifest, range(8))).total
    assert losses(folder, "dev")[3] == pytest.approx(float(by_hand), rel=1e-4)


def test_evaluating_does_not_change_the_training(config, manifest):
    plain = train(config(name="plain"))
    evaluated = train(config(name="evaluated", data={"dev": [str(manifest)]}, train={"eval_every": 1}))
    assert losses(plain) == losses(evaluated)


def test_an_existing_run_is_not_overwritten(config):
    train(config())
    with pytest.raises(ConfigError, match=r"run holds a run: continue it with --resume, or choose another name="):
        train(config())


def test_a_run_is_resumed_with_its_own_settings_only(config):
    train(config())
    with pytest.raises(ConfigError, match=r"was started with other settings: optim\.lr \(0\.003 then, 0\.1 now\)"):
        train(config(optim={"lr": 0.1}), resume=True)
    with pytest.raises(ConfigError, match="there is no run to resume"):
        train(config(name="other"), resume=True)


def test_resuming_a_finished_run_changes_nothing(config):
    folder = train(config())
    before = weights(folder)
    assert train(config(), resume=True) == folder
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(folder).items())
    assert list(losses(folder)) == [1, 2, 3, 4]


@pytest.fixture
def broken(tmp_path) -> Path:
    """Write six utterances; line 2 has a truncated FLAC file and line 4 a missing file."""
    samples = read_manifest(tiny_manifest(tmp_path / "broken", 6, seed=3))
    flac = tmp_path / "broken" / "cut.flac"
    soundfile.write(flac, soundfile.read(samples[1].audio)[0], 16_000)
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 3])
    samples[1].audio.unlink()
    samples[3].audio.unlink()
    path = tmp_path / "broken" / "manifest.jsonl"
    write_manifest(path, samples)
    path.write_text(path.read_text().replace(samples[1].audio.name, flac.name))
    return path


def test_skipped_files_are_listed_at_the_end(config, broken, capsys):
    train(config(data={"train": [str(broken)], "on_error": "skip"}, train={"steps": 3}))
    said = capsys.readouterr().err
    end = said[said.rindex("2 of 6 utterances skipped") :]
    assert f"{broken}:2: '3-1' skipped" in end
    assert f"{broken}:4: '3-3' skipped" in end
    assert "there is no such file" in end


def test_a_broken_file_stops_a_run_that_does_not_skip(config, broken):
    with pytest.raises(DataError, match=r"manifest\.jsonl:4: '3-3' cannot be used: .*there is no such file"):
        train(config(data={"train": [str(broken)]}))


def test_a_run_whose_files_are_all_broken_ends(config, tmp_path):
    manifest = tiny_manifest(tmp_path / "cut", 2, seed=4)
    for sample in read_manifest(manifest):
        sample.audio.write_bytes(sample.audio.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="no utterance"):
        train(config(data={"train": [str(manifest)], "on_error": "skip"}))


def test_cached_frames_give_nearly_the_same_losses(config, tmp_path):
    """The cache is bfloat16, whose 8 bits of precision change the third digit of the loss."""
    data = {"cache_frames": True, "cache_dir": str(tmp_path / "cache")}
    plain = losses(train(config(name="plain", train={"steps": 4})))
    cached = losses(train(config(name="cached", data=data, train={"steps": 4})))
    again = losses(train(config(name="again", data=data, train={"steps": 4})))
    assert cached == again
    assert cached != plain
    assert cached == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("objective", [{"name": "contrastive", "layers": [0, 2]}, {"name": "next_token"}])
def test_gradient_checkpointing_gives_the_same_losses(config, objective):
    plain = losses(train(config(name="plain", objective=objective)))
    checkpointed = losses(train(config(name="again", objective=objective, train={"gradient_checkpointing": True})))
    assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_mixed_precision_keeps_the_weights_in_float32(config, monkeypatch):
    monkeypatch.setattr(precision, "multiplies", lambda *_: True)  # even if this machine does so slowly
    plain = losses(train(config(name="fp32")))
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision per process
    folder = train(config(name="bf16", train={"precision": "bf16"}))
    assert losses(folder) == pytest.approx(plain, rel=0.05)
    assert losses(folder) != plain
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_a_cpu_without_half_precision_trains_in_float32_and_says_so(config, monkeypatch, capsys):
    monkeypatch.setattr(precision, "multiplies", lambda dtype, _: dtype == torch.float32)
    plain = losses(train(config(name="fp32")))
    folder = train(config(name="bf16", model={"llm_dtype": "bfloat16"}, train={"precision": "bf16"}))
    assert losses(folder) == plain
    assert read_record(folder)["model"]["llm_dtype"] == "bfloat16"  # the type with which a GPU loads it
    said = "float32 in place of model.llm_dtype=bfloat16, train.precision=bf16: this CPU has no instructions for half"
    assert capsys.readouterr().err.count(said) == 1


def test_a_cpu_without_half_precision_is_named_before_the_audio_is_encoded(config, monkeypatch, capsys):
    monkeypatch.setattr(precision, "multiplies", lambda dtype, _: dtype == torch.float32)
    monkeypatch.setattr("ossicle.train.cache.FrameCache.fill", lambda *_, **__: 1 / 0)
    slow = config(model={"encoder_dtype": "bfloat16"}, data={"cache_frames": True})
    for run in (train, fill_caches):
        with pytest.raises(ZeroDivisionError):
            run(slow)
        assert "float32 in place of model.encoder_dtype=bfloat16: this CPU" in capsys.readouterr().err


def test_accumulation_is_a_larger_batch(config):
    """Holds for a loss that does not compare utterances, without dropout and with batches of equal weight."""
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
    objective = {"name": "next_token", "average": "example"}
    whole = config(name="whole", model=quiet, objective=objective, data={"batch_size": 8}, train={"steps": 2})
    halves = {"batch_size": 4, "order": "random"}
    split = config(name="split", model=quiet, objective=objective, data=halves, train={"steps": 2, "accumulate": 2})
    torch.testing.assert_close(weights(train(whole)), weights(train(split)), atol=1e-4, rtol=1e-3)
    assert losses(split.folder) == pytest.approx(losses(whole.folder), rel=1e-4)


def test_epochs_become_steps(config):
    folder = train(config(data={"batch_size": 3}, train={"steps": None, "epochs": 1.5, "accumulate": 2}))
    assert list(losses(folder)) == [1, 2, 3]  # 1.5 * 3 batches / 2


def test_stage_two_starts_from_the_projector_of_stage_one(config, task_manifest, tmp_path, folders):
    first = train(config(name="first"))
    seen = []

    def watch(model: SpeechLLM, batch: Batch, call: int) -> None:
        seen.append({name: tensor.clone() for name, tensor in model.projector.state_dict().items()})

    second = {"data": {"train": [str(task_manifest)]}, "train": {"init_from": str(first), "steps": 2}}
    train(config(name="second", **second), objective=Spy(NextToken(), watch))
    assert all(torch.equal(tensor, weights(first)[name]) for name, tensor in seen[0].items())
    with pytest.raises(ValueError, match="was trained with the llm"):
        train(config(name="third", model={"llm": str(folders["qwen2"])}, **second))


def test_the_seed_decides_the_run(config):
    runs = [train(config(name=f"run{i}", train={"seed": seed})) for i, seed in enumerate((0, 0, 1))]
    assert losses(runs[0]) == losses(runs[1])
    assert losses(runs[0]) != losses(runs[2])


def one_of_two(rank: int, port: int, settings: Config, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)
    seen = {}
    spy = Spy(Contrastive(), lambda model, *_: seen.update(model=model), needs_negatives=True)
    train(settings, objective=spy)
    torch.save({"projector": states(seen["model"].projector), "ids": spy.ids}, out / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_share_the_data_and_end_with_the_same_projector(config, manifest, collate, tmp_path):
    data = {"batch_size": 2, "dev": [str(manifest)]}
    settings = config(data=data, train={"steps": 2, "analyze_every": 2})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used threads can hang
    workers = [context.Process(target=one_of_two, args=(rank, port, settings, tmp_path)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=400)
        assert worker.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    trained_on = first["ids"][:2] + second["ids"][:2]  # the other calls belong to the evaluation
    assert sorted(one for ids in trained_on for one in ids) == [f"0-{i}" for i in range(8)]
    folder = settings.folder
    assert list(losses(folder)) == [1, 2]
    for name, tensor in weights(folder).items():
        assert torch.equal(first["projector"][name], tensor)
        assert torch.equal(second["projector"][name], tensor)
    trained = SpeechLLM.from_pretrained(folder)
    states_of_all = pooled_states(trained, [collate(trained, manifest, range(8))])
    report = alignment_report(states_of_all.text, states_of_all.speech, states_of_all.transcripts)
    [measured] = [record for record in read_metrics(folder / "metrics.jsonl") if record["split"] == "alignment"]
    expected = dev_alignment.values_of(report)  # among the utterances of both processes
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-3)
