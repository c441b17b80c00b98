"""Training refuses, skips or reports what would give a wrong result, and resumes only what it can continue."""

import errno
import json
import logging
import multiprocessing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ossicle.batch import Batch, LossOutput
from ossicle.data.manifest import read_manifest, write_manifest
from ossicle.errors import CheckpointError, ConfigError, DataError, TrainingError
from ossicle.models.saving import WEIGHTS_FILE
from ossicle.models.speech_llm import SpeechLLM
from ossicle.objectives import Contrastive, NextToken
from ossicle.testing import tiny_manifest
from ossicle.train.batches import Data
from ossicle.train.dev_sampler import even
from ossicle.train.early_checks import check_files
from ossicle.train.loop import train
from ossicle.train.tracking import read_metrics

NEXT_TOKEN = {"name": "next_token"}


def losses(folder: Path, split: str = "train") -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl") if r["split"] == split}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_FILE)


@pytest.fixture
def unequal(manifest, tmp_path) -> Path:
    """Write four utterances with answers of 1, 40, 1 and 4 words."""
    samples = read_manifest(manifest)[:4]
    path = tmp_path / "unequal.jsonl"
    write_manifest(path, [replace(s, text="a b " * n) for s, n in zip(samples, (1, 40, 1, 4), strict=True)])
    return path


@pytest.mark.parametrize("average", ["token", "example"])
def test_accumulation_is_a_larger_batch_for_answers_of_any_length(config, unequal, average):
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
    shared = {"model": quiet, "objective": {**NEXT_TOKEN, "average": average}}
    data = {"train": [str(unequal)], "order": "random"}
    whole = train(config(name="whole", **shared, data={**data, "batch_size": 4}, train={"steps": 1}))
    uneven = {**data, "batch_size": 3}  # batches of three and of one
    split = train(config(name="split", **shared, data=uneven, train={"steps": 1, "accumulate": 2}))
    torch.testing.assert_close(weights(split), weights(whole), atol=1e-5, rtol=1e-4)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)


def test_the_average_of_the_papers_code_is_over_batches(config, unequal):
    """The mean of the two batch means: by hand from the losses of the batches, at the weights of the start."""
    quiet = {"projector": {**config().model.projector.__dict__, "dropout": 0.0}}
    data = {"train": [str(unequal)], "order": "random", "batch_size": 3}
    seen = []

    @dataclass
    class Spy:
        average: str
        needs_negatives = needs_mixed = False

        def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
            output = NextToken(average=self.average)(model, batch)
            with torch.no_grad():
                mean = NextToken(average="batch")(model, replace(batch, weights={})).total.item()
            seen.append((mean, batch.label_counts()["answers"], output.total.item()))
            return output

    for average in ("batch", "token"):
        settings = config(name=average, model=quiet, data=data, train={"steps": 1, "accumulate": 2})
        train(settings, objective=Spy(average))
    (m1, n1, _), (m2, n2, _), *token = seen
    assert n1 != n2
    assert losses(settings.folder.with_name("batch"))[1] == pytest.approx((m1 + m2) / 2, rel=1e-6)
    assert losses(settings.folder)[1] == pytest.approx((m1 * n1 + m2 * n2) / (n1 + n2), rel=1e-6)
    assert (token[0][2] + token[1][2]) / 2 == pytest.approx((m1 * n1 + m2 * n2) / (n1 + n2), rel=1e-6)


@pytest.mark.parametrize("objective", [NextToken(), Contrastive(layers=[0])])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_development_data_are_every_line_once(config, manifest, task_manifest, model, objective, size):
    data = {"curriculum_epochs": 3, "fraction": 0.5, "batch_size": size, "dev": [str(task_manifest), str(manifest)]}
    settings = config(data={**data, "train": [str(task_manifest)], "mixture": {"asr": 5}}).data
    dev = Data.load_dev(settings, model, Accelerator(cpu=True), objective=objective)
    seen = [sample.source for batch in dev.epoch(0) for sample in batch.samples]
    expected = [sample.source for path in settings.dev for sample in read_manifest(Path(path))]
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("smallest", [1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [[1], [3, 3, 1], [1, 1, 1, 1, 1], [10, 10, 10, 2], [1, 7], [4, 1, 4, 1]])
def test_batches_are_divided_evenly(sizes, ranks, smallest):
    items = iter(range(100))
    batches = [[next(items) for _ in range(size)] for size in sizes]
    found = even(batches, smallest=smallest, ranks=ranks)
    assert len(found) % ranks == 0
    assert [item for batch in found for item in batch] == [item for batch in batches for item in batch]
    if sum(sizes) >= smallest * ranks:
        assert min(map(len, found)) >= smallest


def test_too_few_development_utterances_are_refused(config, manifest, tmp_path):
    one = tmp_path / "one.jsonl"
    write_manifest(one, read_manifest(manifest)[:1])
    with pytest.raises(ConfigError, match=r"data\.dev has 1 usable utterance, but the objective compares"):
        train(config(data={"dev": [str(one)]}))
    folder = train(config(name="ok", objective=NEXT_TOKEN, data={"dev": [str(one)]}, train={"eval_every": 4}))
    assert list(losses(folder, "dev")) == [4]


def test_development_data_that_cannot_be_decoded_are_reported(config, tmp_path, capsys):
    """The header is valid, so that only decoding shows the fault."""
    import soundfile

    dev = tiny_manifest(tmp_path / "cut", 2, seed=4)
    samples = []
    for sample in read_manifest(dev):
        flac = sample.audio.with_suffix(".flac")
        soundfile.write(flac, soundfile.read(sample.audio)[0], 16_000)
        duration_s = soundfile.info(flac).duration
        flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 3])
        samples.append(replace(sample, audio=flac, duration_s=duration_s))
    write_manifest(dev, samples)
    for objective in ({"name": "contrastive"}, NEXT_TOKEN):
        data = {"dev": [str(dev)], "on_error": "skip"}
        training = {"eval_every": 2, "analyze_every": 2}
        folder = train(config(name=objective["name"], objective=objective, data=data, train=training))
        assert not [record for record in read_metrics(folder / "metrics.jsonl") if record["split"] != "train"]
        assert list(losses(folder)) == [1, 2, 3, 4]
        said = " ".join(capsys.readouterr().err.split())
        assert "data.dev was not evaluated. 2 of 2 utterances skipped" in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"batch_size": 1}, r"data\.batch_size is 1: set it to 2 or more"),
        ({"max_batch_s": 0.2}, r"data\.max_batch_s=0\.2 has no room for two utterances"),
    ],
)
def test_batches_without_negatives_are_refused(config, data, message):
    with pytest.raises(ConfigError, match=message):
        train(config(data=data))
    assert not (config().folder / WEIGHTS_FILE).exists()


def test_an_early_epoch_of_a_curriculum_may_be_too_small_for_a_batch(config, manifest, tmp_path):
    three = tmp_path / "three.jsonl"
    write_manifest(three, read_manifest(manifest)[:3])
    folder = train(config(data={"train": [str(three)], "curriculum_epochs": 3}))
    assert list(losses(folder)) == [1, 2, 3, 4]


def test_a_diverged_run_fails_and_its_metrics_stay_json(config):
    settings = config(optim={"lr": 1e30, "warmup": 0.0}, train={"steps": 20, "max_nonfinite_steps": 3})
    with pytest.raises(
        TrainingError, match=r"step \d+ is not finite, with '0-\d' \(.*:\d\).*lower optim\.lr"
    ) as caught:
        train(settings)
    assert "\n" not in str(caught.value)
    assert not (settings.folder / WEIGHTS_FILE).exists()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = (settings.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    skipped = [record for record in records if record["split"] == "skipped"]
    assert len(skipped) == 3
    assert len(skipped[0]["utterances"]) == 4


def test_a_run_whose_last_step_is_not_finite_fails(config):
    with pytest.raises(TrainingError):
        train(config(optim={"lr": 1e30, "warmup": 0.0}, train={"steps": 3}))
    assert not (config().folder / WEIGHTS_FILE).exists()


@dataclass
class Poisoned:
    """Next-token objective whose loss is NaN in calls ``bad``; calls are counted from 1."""

    bad: tuple[int, ...]
    needs_negatives = needs_mixed = False
    calls: int = 0

    def __call__(self, model: SpeechLLM, batch: Batch) -> LossOutput:
        self.calls += 1
        output = NextToken()(model, batch)
        factor = float("nan") if self.calls in self.bad else 1.0
        return LossOutput(output.total * factor, output.parts)


def test_a_single_bad_step_changes_no_weight_and_is_counted(config, capsys):
    folder = train(config(train={"steps": 4}), objective=Poisoned((2,)))
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records if r["split"] == "skipped"] == [2]
    assert losses(folder)[2] is None
    assert losses(folder)[4] is not None
    assert [r.get("skipped_steps") for r in records if r["split"] == "train"] == [None, 1, 1, 1]
    assert "the step is skipped (1 so far)" in " ".join(capsys.readouterr().err.split())


def test_changed_data_are_refused_unless_allowed(config, manifest, tmp_path):
    copy = tmp_path / "copy.jsonl"
    write_manifest(copy, read_manifest(manifest))
    train(config(data={"train": [str(copy)]}))
    moved = tmp_path / "moved.jsonl"
    copy.rename(moved)
    again = config(data={"train": [str(moved)]}, train={"steps": 5})
    train(again, resume=True)  # another path, the same content
    write_manifest(moved, read_manifest(moved)[:4])
    longer = config(data={"train": [str(moved)]}, train={"steps": 6})
    with pytest.raises(CheckpointError, match=r"content of data\.train has changed .* add --allow-changed-data"):
        train(longer, resume=True)
    folder = train(longer, resume=True, allow_changed_data=True)
    assert list(losses(folder)) == [1, 2, 3, 4, 5, 6]


def test_a_manifest_that_is_named_twice_is_pointed_out(config, manifest, caplog):
    twice = config(data={"train": [str(manifest)] * 2, "dev": [str(manifest)]})
    with caplog.at_level(logging.WARNING):
        check_files(twice)
    assert f"data.train names {manifest} 2 times" in caplog.text
    assert f"data.dev names {manifest}, which data.train names too" in caplog.text
    caplog.clear()
    check_files(config(data={"train": [str(manifest)]}))
    assert not caplog.text


def test_a_text_that_is_longer_than_the_context_is_named_with_its_line(config, manifest, tmp_path):
    samples = read_manifest(manifest)
    long = tmp_path / "long.jsonl"
    write_manifest(long, [samples[0], replace(samples[1], text="seven " * 5000), *samples[2:]])
    settings = config(data={"train": [str(long)]}, objective={"name": "next_token"})
    with pytest.raises(DataError, match=r"exceed the context of .* longest text of the batch is in .*long\.jsonl:2"):
        train(settings)


def test_settings_that_change_no_result_may_change_and_the_folder_may_move(config, caplog):
    train(config(train={"steps": 4}))
    config().folder.rename(config().folder.with_name("renamed"))
    free = {"log_every": 2, "save_every": 3, "tensorboard": True, "steps": 6, "eval_every": 7, "keep": 1}
    with caplog.at_level(logging.WARNING):
        folder = train(config(name="renamed", data={"workers": 1}, train=free), resume=True)
    assert "train.steps (4 then, 6 now): the learning rate follows the new length" in caplog.text
    assert list(losses(folder)) == [1, 2, 3, 4, 6]
    with pytest.raises(ConfigError, match=r"the checkpoint is of step 6, and the run has 5"):
        train(config(name="renamed", train={"steps": 5}), resume=True)


def test_a_longer_resumed_run_has_the_learning_rate_of_its_new_length(config):
    optim = {"lr": 1e-3, "warmup": 0.0}
    train(config(optim=optim, train={"steps": 2}))
    folder = train(config(optim=optim, train={"steps": 4}), resume=True)
    whole = train(config(name="whole", optim=optim, train={"steps": 4}))
    rates = [{r["step"]: r["lr"] for r in read_metrics(one / "metrics.jsonl")} for one in (folder, whole)]
    assert rates[0][3] == rates[1][3] > 0
    assert rates[0][4] == rates[1][4]


def test_a_fresh_start_does_not_keep_old_records(config):
    settings = config(train={"steps": 2, "tensorboard": True})
    settings.folder.mkdir(parents=True)
    old = {"step": 9, "split": "train", "loss": 1.0}
    (settings.folder / "metrics.jsonl").write_text(json.dumps(old) + '\n{"step": 10, "spl')
    (settings.folder / "best").mkdir()
    folder = train(settings)
    assert list(losses(folder)) == [1, 2]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (folder / "best").exists()


def damage(checkpoint: Path, how: str) -> None:
    path = checkpoint / ("trainer.pt" if how.startswith("trainer") else how.partition(" ")[0])
    content = path.read_bytes()
    if how.endswith("missing"):
        path.unlink()
    elif how.endswith("empty"):
        path.write_bytes(b"")
    elif how.endswith("cut"):
        path.write_bytes(content[: len(content) // 2])
    elif how.endswith("flipped"):
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        state = torch.load(path, weights_only=True)
        del state["ranks"]
        torch.save(state if how.endswith("keyless") else [1, 2], path)


HOW = ["missing", "empty", "cut", "flipped"]
DAMAGE = [f"trainer {how}" for how in [*HOW, "keyless", "list"]] + [
    f"{file} {how}" for file in (WEIGHTS_FILE, "ossicle.json") for how in ("missing", "empty", "cut")
]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, how, caplog):
    settings = config(train={"steps": 4, "save_every": 2, "keep": 1})
    settings = replace(settings, train=replace(settings.train, keep=2))
    folder = train(settings)
    before = weights(folder)
    damage(folder / "checkpoints" / "step-0000004", how)
    with caplog.at_level(logging.WARNING):
        train(settings, resume=True)
    assert "step-0000004" in caplog.text
    assert "the next older checkpoint is tried" in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())
    assert list(losses(folder)) == [1, 2, 3, 4]


def test_damage_to_all_checkpoints_is_one_line_with_the_file(config):
    folder = train(config(train={"steps": 2, "keep": 1}))
    damage(folder / "checkpoints" / "step-0000002", "trainer cut")
    with pytest.raises(
        CheckpointError, match=r"step-0000002/trainer\.pt: the file is damaged .*no other checkpoint"
    ) as e:
        train(config(train={"steps": 2, "keep": 1}), resume=True)
    assert "\n" not in str(e.value)


def test_a_checkpoint_after_a_fallback_is_kept(config):
    """With keep=1 the damaged newer checkpoint must not push out the one that was just written."""
    once = {"steps": 4, "save_every": 1, "keep": 2}
    folder = train(config(train=once))
    damage(folder / "checkpoints" / "step-0000004", "trainer cut")
    train(config(train={**once, "keep": 1}), resume=True)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-0000004"]
    train(config(train={**once, "keep": 1}), resume=True)


def test_a_full_disk_names_the_newest_checkpoint(config, monkeypatch):
    save = SpeechLLM.save

    def full(self: SpeechLLM, folder: Path) -> None:
        if "4" in Path(folder).name or Path(folder).name == "run":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    with monkeypatch.context() as patched, pytest.raises(TrainingError) as caught:
        patched.setattr(SpeechLLM, "save", full)
        train(config(train={"steps": 4, "save_every": 2}))
    assert "No space left on device; free some space, and run the same command with --resume" in str(caught.value)
    assert "step-0000002" in str(caught.value)
    folder = train(config(train={"steps": 4, "save_every": 2}), resume=True)
    assert list(losses(folder)) == [1, 2, 3, 4]


def hold(settings, ready, release) -> None:
    from ossicle.train.run_folder import claimed

    with claimed(settings, None, Accelerator(cpu=True), resume=False):
        ready.set()
        release.wait(60)


def test_a_folder_is_trained_in_by_one_process_and_a_dead_one_frees_it(config):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(config(), ready, release))
    other.start()
    try:
        assert ready.wait(60)
        for resume in (False, True):
            with pytest.raises(ConfigError, match="another process trains in this folder"):
                train(config(), resume=resume)
    finally:
        other.kill()
        other.join()
    train(config())


@pytest.mark.parametrize("name", ["../outside", "a/b", "/elsewhere/x", "..", ".", "a\\b", "a\0b", " "])
def test_a_name_that_leaves_the_output_folder_is_refused(config, name):
    with pytest.raises(ConfigError, match="name"):
        config(name=name)


def test_a_folder_that_cannot_be_created_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be created"):
        train(replace(config(), output_dir=str(tmp_path / "file")))


def test_resuming_does_not_need_the_projector_of_the_start(config):
    first = train(config(name="first"))
    second = config(name="second", train={"init_from": str(first), "steps": 2})
    train(second)
    for path in sorted(first.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    train(replace(second, train=replace(second.train, steps=3)), resume=True)
