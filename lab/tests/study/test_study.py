"""Test a whole study on tiny models: its files, what is not repeated, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from ossicle.data.manifest import read_manifest
from ossicle.errors import ConfigError
from ossicle.evaluate.metrics import wer
from ossicle.train import checkpoint
from ossicle.train.cache import audio_key
from ossicle.train.tracking import read_metrics
from ossicle_lab.study.choices import Choices, development_score
from ossicle_lab.study.config import StudyConfig, load
from ossicle_lab.study.data import prepare_data
from ossicle_lab.study.job import StudyError, digest
from ossicle_lab.study.plan import Plan
from ossicle_lab.study.run import run_study, summarise
from ossicle_lab.study.summary import print_results
from ossicle_lab.study.watch import Watch
from ossicle_lab.study.work import run_job


def records(folder: Path) -> dict[str, int]:
    """Return the record of every finished job with the time when it was written."""
    names = {"cell.json", "pretraining.json", "trial.json", "bound.json"}
    # os.walk, unlike Path.rglob, tolerates checkpoints that a running study deletes
    found = (Path(parent) / name for parent, _, files in os.walk(folder) for name in names.intersection(files))
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in found}


def files(folder: Path, ending: str) -> dict[str, int]:
    """Return the files whose path has this ending, with the time when each was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if str(p).endswith(ending)}


@pytest.fixture
def done(study_file) -> tuple[StudyConfig, dict]:
    config = load(study_file)
    return config, run_study(config, processes=0)


CELLS = {
    f"cells/{row}/{fraction}/seed-{seed}/cell.json"
    for row, seeds in (("none/0-steps", [0]), ("contr/3-steps", [0, 1]))
    for fraction in ("0.5", "1")
    for seed in seeds
}


def test_every_cell_is_there_and_starts_from_a_pretraining_that_is_shared(done):
    config, record = done
    found = records(config.folder)
    assert {path for path in found if path.startswith("cells/")} == CELLS
    starts = [path for path in found if path.startswith("pretraining/")]
    assert len(starts) == 2  # one for each seed, not for each cell
    assert record == json.loads((config.folder / "results.json").read_text())
    assert record["cells"] == {"done": 6, "of": 6}
    assert record["columns"] == ["asr:wer", "st/de:bleu", "qa:f1", "qa:em", "unseen", "count:em"]
    rows = {(row["name"], row["fraction"]): row for row in record["rows"]}
    assert rows["contr", 0.5]["seeds"] == [0, 1]
    assert len(rows["contr", 0.5]["scores"]["asr:wer"]["values"]) == 2
    assert rows["none", 1.0]["scores"]["asr:wer"]["sd"] is None
    assert {row["layer"] for row in record["alignment"]["contr"]} == {0, 1, 2, 3}
    assert {claim["verdict"] for claim in record["claims"]} <= {"holds", "partly", "fails", "not tested"}

    def settings(cell: str) -> dict:
        return yaml.safe_load((config.folder / "cells" / cell / "run" / "config.yaml").read_text())

    contr, none = settings("contr/3-steps/0.5/seed-1"), settings("none/0-steps/1/seed-0")
    assert contr["train"]["init_from"].endswith("pretraining/contr/3-steps-lr-0.003/seed-1/run")
    assert (contr["train"]["steps"], contr["data"]["fraction"]) == (1, 0.5)
    assert (contr["train"]["seed"], contr["data"]["seed"]) == (1, 1)
    assert (none["train"]["init_from"], none["train"]["steps"]) == (None, 3)  # its own number of steps


def test_what_is_done_stays_unless_a_changed_setting_touches_it(done, study_file):
    config, record = done
    before = records(config.folder)
    assert run_study(config, processes=0)["rows"] == record["rows"]
    assert records(config.folder) == before
    changed = load(study_file, steps := ["finetuning.steps={0.5: 2, 1.0: 2}"])
    with pytest.raises(StudyError, match=r"done with other settings; --rerun-changed .*\n.*train\.steps \(1 then, 2"):
        run_study(changed, processes=0)
    assert records(config.folder) == before
    run_study(changed, processes=0, rerun_changed=True)
    after = records(config.folder)
    assert {path for path in before if after[path] != before[path]} == {path for path in CELLS if "/0.5/" in path}
    before = after
    more = load(
        study_file, ["pretraining.other={recipe: contrastive.yaml, overrides: [objective.temperature=0.5]}", *steps]
    )
    record = run_study(more, processes=0)
    assert before.items() <= records(config.folder).items()
    assert {row["name"] for row in record["rows"]} == {"none", "contr", "other"}


def test_a_study_of_a_version_without_a_setting_continues(done):
    config, record = done
    path = config.folder / "cells/contr/3-steps/1/seed-1/cell.json"
    cell = json.loads(path.read_text())
    older = json.loads(path.read_text())
    del older["stamp"]["config"]["train"]["dropout"]
    path.write_text(json.dumps(older))
    before = records(config.folder)
    assert run_study(config, processes=0)["rows"] == record["rows"]
    assert records(config.folder) == before
    cell["stamp"]["config"]["train"]["dropout"] = "utterance"
    path.write_text(json.dumps(cell))
    with pytest.raises(StudyError, match=r"train\.dropout \(utterance then, process now\)"):
        run_study(config, processes=0)
    cell["stamp"]["config"]["train"] |= {"dropout": "process", "gone": 1}
    path.write_text(json.dumps(cell))
    with pytest.raises(StudyError, match=r"train\.gone \(1 then, None now\)"):
        run_study(config, processes=0)


def test_another_test_is_decoded_and_scored_without_training_again(done, study_file, study_tree):
    config, record = done
    before, trained = records(config.folder), files(config.folder, "run/projector.safetensors")
    test = Path(study_tree["data"]["test"][0])
    asr = [line for line in test.read_text().splitlines() if json.loads(line)["task"] == "asr"]
    test.write_text("\n".join(line for line in test.read_text().splitlines() if line != asr[0]) + "\n")
    digest.cache_clear()
    with pytest.raises(StudyError, match=r"done with other settings; .*\n.*: test \("):
        run_study(config, processes=0)
    again = run_study(config, processes=0, rerun_changed=True)
    after = records(config.folder)
    assert {path for path in before if after[path] != before[path]} == CELLS | {"bound/bound.json"}
    assert files(config.folder, "run/projector.safetensors") == trained
    hypotheses = (config.folder / "cells/contr/3-steps/1/seed-1/hypotheses.jsonl").read_text().splitlines()
    assert len(hypotheses) == len(test.read_text().splitlines())
    cost = json.loads((config.folder / "cells/contr/3-steps/1/seed-1/cost.json").read_text())
    cell = json.loads((config.folder / "cells/contr/3-steps/1/seed-1/cell.json").read_text())
    assert cell["seconds"] > cost["seconds"] > 0  # includes the time of training
    assert again["settings"] == record["settings"]  # the cost of a step, too


def test_settings_are_chosen_on_the_development_split_and_time_is_matched(study_file):
    overrides = ["choose={lr: [0.01], fraction: 0.5}", "compare={compute: [0.5], compute_like: contr}"]
    config = load(study_file, [*overrides, "pretraining.twin={recipe: contrastive.yaml}"])
    record = run_study(config, processes=0)
    trials = record["settings"]["contr"]["trials"]
    assert {trial["lr"] for trial in trials} == {0.003, 0.01}
    best = max(trials, key=lambda trial: trial["development_score"])
    assert record["settings"]["contr"]["used"]["steps"]["lr"] == best["lr"]
    decoded = (config.folder / "trials").rglob("hypotheses.jsonl")
    ids = {json.loads(line)["id"] for path in decoded for line in path.read_text().splitlines()}
    assert {name.partition("-")[0] for name in ids} == {"2"}  # the development manifest's; the test's begin with 3
    assert not record["settings"]["none"]["trials"]  # has no stage 1 whose rate could be chosen
    compute = record["settings"]["twin"]["used"]["compute"]
    own, like = (record["settings"][name]["cost_s_per_step"] for name in ("twin", "contr"))
    assert compute["steps"] == max(1, round(3 * like / own))
    assert {row["mode"] for row in record["rows"]} == {"steps", "compute"}


def test_the_time_of_a_step_is_measured_in_a_short_run(study_file):
    """Rows that are compared at the same time alone need no whole stage 1 to measure a step."""
    compare = "compare={steps: [], compute: [0.5], compute_like: contr, probe_steps: 2}"
    config = load(study_file, [compare, "pretraining.twin={recipe: contrastive.yaml}", "stage1.steps=5"])
    record = run_study(config, processes=0)
    lengths = {
        name: sorted(p.name for p in (config.folder / "pretraining" / name).iterdir()) for name in ("contr", "twin")
    }
    assert lengths["contr"] == ["2-steps-lr-0.003", "5-steps-lr-0.003"]
    assert lengths["twin"][0] == "2-steps-lr-0.003"
    own, like = (record["settings"][name]["cost_s_per_step"] for name in ("twin", "contr"))
    assert record["settings"]["twin"]["used"]["compute"]["steps"] == max(1, round(5 * like / own))


def test_a_row_keeps_the_learning_rate_of_its_stage_two(study_file):
    config = load(study_file, ["pretraining.contr.finetune_overrides=[optim.lr=7e-4]"])
    plan = Plan(config, config.data)
    rates = {key.name: plan.cell(key).settings().optim.lr for key in plan.cells()}
    assert rates["contr"] == 7e-4
    assert rates["none"] != 7e-4


def scored(monkeypatch, score):
    """Replace development scores by ``score(name of the trial's folder)``."""

    def made_up(self, trial):
        return score(trial.folder.name) if trial.is_done() else None

    monkeypatch.setattr(Choices, "_score", made_up)


def test_trials_are_chosen_by_a_mean_in_which_more_is_better():
    scores = {"asr": {"wer": 40.0}, "st/de": {"bleu": 30.0, "chrf": 99.0}, "qa": {"f1": 50.0, "em": 1.0}}
    assert development_score(scores, ["asr", "st/de", "qa"]) == pytest.approx((60 + 30 + 50) / 3)
    assert development_score({"asr": {"wer": 250.0}}, ["asr"]) == 0


def test_stage_two_is_as_long_as_it_pays(study_file, monkeypatch):
    """Lengths are tried in turn until one gains less than ``plateau_gain``."""
    by_steps = {1: 10.0, 2: 20.0, 4: 20.5, 8: 90.0}
    scored(monkeypatch, lambda folder: by_steps[int(folder.split("-")[-2])])
    config = load(study_file, ["pretraining.none={recipe: null, plateau: {1.0: [1, 2, 4, 8]}}"])
    record = run_study(config, processes=0)
    tried = record["settings"]["none"]["plateau"]["1"]
    assert [(trial["steps"], trial["development_score"]) for trial in tried] == [(1, 10.0), (2, 20.0), (4, 20.5)]
    cell = json.loads((config.folder / "cells/none/0-steps/1/seed-0/cell.json").read_text())
    assert cell["steps"] == 4  # the best of those tried
    half = json.loads((config.folder / "cells/none/0-steps/0.5/seed-0/cell.json").read_text())
    assert half["steps"] == 1  # the study's own length
    assert record["cells"] == {"done": 6, "of": 6}


def test_the_best_length_is_chosen_on_the_development_split(study_file, monkeypatch):
    scored(monkeypatch, lambda folder: 50.0 if folder.startswith("5-steps") else 10.0)
    config = load(study_file, ["choose={steps: [5], fraction: 0.5}", "compare={chosen: [0.5]}"])
    record = run_study(config, processes=0)
    used = record["settings"]["contr"]["used"]
    assert (used["steps"]["steps"], used["chosen"]["steps"]) == (3, 5)
    rows = {(row["mode"], row["name"], row["fraction"]): row for row in record["rows"]}
    assert rows["chosen", "contr", 0.5]["hypotheses"][0].startswith("cells/contr/5-steps/0.5/")
    assert rows["steps", "contr", 0.5]["hypotheses"][0].startswith("cells/contr/3-steps/0.5/")
    assert ("chosen", "contr", 1.0) not in rows


def test_a_failed_job_leaves_the_others_and_is_tried_again(study_file, tmp_path):
    broken = ["pretraining.broken={recipe: contrastive.yaml, overrides: [objective.layers=9]}"]
    config = load(study_file, broken)
    with pytest.raises(StudyError, match=r"1 jobs failed.*\nbroken, stage 1.*objective\.layers=9.*log\.txt"):
        run_study(config, processes=0)
    assert json.loads((config.folder / "results.json").read_text())["cells"] == {"done": 6, "of": 8}


def test_several_test_sets_have_scores_of_their_own(study_file, study_tree, tmp_path):
    test = Path(study_tree["data"]["test"][0])
    lines = test.read_text().splitlines()
    asr = [line for line in lines if json.loads(line)["task"] == "asr"]
    other = test.with_name("other.jsonl")
    other.write_text("\n".join(asr[:1]) + "\n")
    test.write_text("\n".join(line for line in lines if line != asr[0]) + "\n")
    one = ["pretraining={contr: {recipe: contrastive.yaml}}", "finetuning.steps={0.5: 1}", "data.unseen_metric=f1"]
    record = run_study(load(study_file, [*one, f"data.test=[{test}, {other}]"]), processes=0)
    sets = [f"asr@{test.stem}:wer", "asr@other:wer"]
    assert record["columns"] == ["asr:wer", "st/de:bleu", "qa:f1", "qa:em", "unseen", "count:f1", *sets]
    (scores,) = [row["scores"] for row in record["rows"]]
    assert {*sets, "asr:wer"} <= record["bound"].keys()
    hypotheses = Path(load(study_file).folder, record["rows"][0]["hypotheses"][0]).read_text().splitlines()
    (alone,) = [json.loads(line) for line in hypotheses if json.loads(line)["id"] == json.loads(asr[0])["id"]]
    assert scores["asr@other:wer"]["mean"] == pytest.approx(wer([alone["hypothesis"]], [alone["references"]]).value)
    console = Console(width=200)
    with console.capture() as shown:
        print_results(record, console)
    assert "asr@other:wer" in shown.get() and "qa:em" not in shown.get()


def test_a_row_may_have_its_own_settings_of_stage_two(study_file):
    row = "pretraining={none: {recipe: null}, slow: {recipe: null, finetune_overrides: [data.batch_size=1]}}"
    config = load(study_file, [row, "finetuning.steps={0.5: 1}"])
    plan = Plan(config, config.data)
    sizes = {key.name: plan.cell(key).settings().data.batch_size for key in plan.cells()}
    assert sizes["slow"] == 1 != sizes["none"]


def test_the_results_so_far_can_be_shown_without_running_anything(done):
    config, record = done
    (config.folder / "cells/none/0-steps/1/seed-0/cell.json").unlink()
    (config.folder / "results.json").unlink()
    before = records(config.folder)
    found = summarise(config)
    assert found["cells"] == {"done": 5, "of": 6}
    assert found == json.loads((config.folder / "results.json").read_text())
    assert [row for row in record["rows"] if (row["name"], row["fraction"]) != ("none", 1.0)] == found["rows"]
    assert records(config.folder) == before


def test_a_study_without_results_is_not_summarised(study_file):
    with pytest.raises(StudyError, match="no cell is done yet"):
        summarise(load(study_file))


def test_a_study_that_trains_on_an_unseen_task_is_refused(study_file, study_tree):
    with pytest.raises(ConfigError, match=r"manifest-2\.jsonl:3: has the task qa, which data\.unseen excludes"):
        run_study(load(study_file, ["data.unseen=[qa]", "data.tasks=[asr]"]), processes=0)
    with pytest.raises(ConfigError, match=r"data\.test: .* has no line with the task st/es"):
        run_study(load(study_file, ["data.unseen=[st/es]"]), processes=0)


def test_a_killed_study_continues_where_it_was(study_file, tmp_path):
    """A study killed half-way is run to its end: finished jobs stay, the running one is resumed."""
    slow = ["stage1.steps=15", "finetuning.steps={0.5: 15, 1.0: 25}"]
    command = [sys.executable, "-m", "ossicle", "study", str(study_file), *slow, "--jobs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    folder = load(study_file).folder
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        deadline = time.monotonic() + 120
        while len([path for path in records(folder) if path.startswith("cells/")]) < 2:
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = records(folder)
    assert 2 <= len([path for path in before if path.startswith("cells/")]) < 6
    time.sleep(1.5)  # the workers end once they notice that their parent has ended
    before = records(folder)
    record = run_study(load(study_file, slow), processes=0)
    assert record["cells"] == {"done": 6, "of": 6}
    assert before.items() <= records(folder).items()


def test_a_killed_pretraining_resumes_from_its_checkpoint(study_file, monkeypatch):
    config = load(study_file, ["stage1.steps=16"])
    plan = Plan(config, prepare_data(config, Console(quiet=True)))
    job = next(job for job in plan.jobs() if job.kind == "pretraining")
    save = checkpoint.save

    class Killed(BaseException):
        pass

    def save_and_die(folder, model, trainer, accelerator, *, keep):
        save(folder, model, trainer, accelerator, keep=keep)
        if trainer.position.step == 8:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save", save_and_die)
        job.prepare()
        run_job(job)
    run_study(config, processes=0)
    assert "resumed at 8" in (job.folder / "log.txt").read_text()
    assert [row["step"] for row in read_metrics(job.run_folder / "metrics.jsonl")] == list(range(1, 17))
    assert not (job.run_folder / "checkpoints").exists()  # of no use any more


def test_audio_that_no_stage_takes_is_not_encoded_and_the_cache_may_be_that_of_another_run(study_file, tmp_path):
    pretrain = read_manifest(load(study_file).data.pretrain[0])
    limit = sorted(sample.duration_s for sample in pretrain)[len(pretrain) // 2]
    stage1 = f"stage1.overrides=[data.max_duration_s={limit}, data.on_error=skip]"
    config = load(study_file, [f"cache_dir={tmp_path / 'frames'}", stage1, "data.alignment=[]"])

    prepare_data(config, Console(quiet=True))

    keys = {key for index in (tmp_path / "frames").glob("*/*.json") for key in json.loads(index.read_text())}
    assert [audio_key(sample) in keys for sample in pretrain] == [sample.duration_s <= limit for sample in pretrain]
    assert all(audio_key(sample) in keys for path in config.data.test for sample in read_manifest(path))
    assert not (config.folder / "cache").exists()
    assert run_study(config, processes=0)["cells"]["done"] == 6


def test_the_table_shows_each_cell_and_the_time_left(done):
    config, _ = done
    plan = Plan(config, prepare_data(config, Console(quiet=True)))
    for seed, seconds in ((0, 8.0), (1, 99.0)):
        path = config.folder / f"cells/contr/3-steps/1/seed-{seed}/cell.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    none = config.folder / "cells/none/0-steps/1/seed-0/cell.json"
    none.write_text(json.dumps(json.loads(none.read_text()) | {"seconds": 12.0}))
    (config.folder / "cells/contr/3-steps/1/seed-1/cell.json").unlink()
    watch = Watch(plan, Console(width=100), processes=2)
    jobs = plan.jobs()
    missing = next(job for job in jobs if not job.is_done())
    watch.update(jobs, [], {})
    # the others of its column took 8 s for 2 steps and 12 s for 3: 4 s a step, 2 steps, on 2 processes
    assert watch.seconds_left() == pytest.approx(4.0)
    assert watch.summary() == "5 of 6 cells, about 4 s left"
    with watch.console.capture() as waiting:
        watch.console.print(watch.render())
    assert "100.0 ·" not in waiting.get() and "0.0 ·" in waiting.get()  # BLEU of seed 0, and seed 1 to come
    watch.update(jobs, [], {missing.folder: "it broke (see log.txt)"})
    with watch.console.capture() as broken:
        watch.console.print(watch.render())
    assert "0.0 ✗" in broken.get() and "✗ it broke (see log.txt)" in broken.get()


def test_without_a_terminal_a_line_shows_what_runs_and_the_time_left(done, monkeypatch):
    config, _ = done
    plan = Plan(config, prepare_data(config, Console(quiet=True)))
    job = next(job for job in plan.jobs() if job.kind == "cell")
    job.record_path.unlink()
    monkeypatch.setattr("ossicle_lab.study.watch.progress", lambda job: 0.5)
    watch = Watch(plan, Console(width=100), processes=1)
    watch.update(plan.jobs(), [job], {})
    with watch.console.capture() as early:
        watch.tick()
    assert early.get() == ""  # a line comes every half minute
    monkeypatch.setattr("ossicle_lab.study.watch.LINE_EVERY_S", 0.0)
    with watch.console.capture() as late:
        watch.tick()
    assert late.get().startswith("5 of 6 cells, about ")
    assert f"{job.label}: step {job.steps / 2:.0f}/{job.steps}" in late.get()
