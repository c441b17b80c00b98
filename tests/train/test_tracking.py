import json

from ossicle.train.tracking import METRICS_FILE, Tracker, describe, mean, read_metrics, spread

VALUES = {
    "loss": 1.5,
    "part/a": 1.0,
    "part/b": 0.5,
    "audio_s": 4.0,
    "audio_s_per_s": 25.4,
    "padding": 0.125,
    "lr": 1e-4,
}


def test_every_logged_step_is_a_record_and_a_line(tmp_path, capsys):
    with Tracker(tmp_path, steps=4, tensorboard=False) as tracker:
        tracker.advance(1)
        tracker.log(2, VALUES)
        tracker.log(4, {"loss": 1.25}, split="dev")
        tracker.say("saved [best]")
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{tmp_path.name} train step 2/4  loss 1.500  a 1.000  b 0.500  25 audio-s/s  padding 12%")
    assert "ETA 0:0" in first
    assert others == [f"{tmp_path.name} dev step 4/4  loss 1.250", "saved [best]"]
    records = read_metrics(tmp_path / METRICS_FILE)
    assert [(record["step"], record["split"], record["loss"]) for record in records] == [
        (2, "train", 1.5),
        (4, "dev", 1.25),
    ]
    assert records[0].items() >= VALUES.items() and records[0]["time_s"] >= 0


def test_other_processes_write_and_show_nothing(tmp_path, capsys):
    with Tracker(tmp_path, steps=4, tensorboard=True, enabled=False) as tracker:
        tracker.advance(1)
        tracker.log(2, VALUES)
        tracker.say("saved")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_tensorboard_events_are_written(tmp_path):
    with Tracker(tmp_path, steps=4, tensorboard=True) as tracker:
        tracker.log(2, VALUES)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_repeated_step_counts_once(tmp_path):
    records = [{"step": 1, "split": "train", "loss": 2.0}, {"step": 1, "split": "dev", "loss": 3.0}]
    records.append({"step": 1, "split": "train", "loss": 1.0})
    path = tmp_path / METRICS_FILE
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [record["loss"] for record in read_metrics(path)] == [1.0, 3.0]


def test_at_most_three_parts_are_shown():
    parts = {f"part/{i}": float(i) for i in range(7)}
    assert describe({"loss": 1.0, **parts}) == "loss 1.000  0 0.000  3 3.000  6 6.000"
    assert describe({"loss": 1.0, "part/0": 1.0}) == "loss 1.000"
    assert describe({"r_at_1": 50.0}) == "R@1 50.0%"
    assert spread([1, 2], 3) == [1, 2]


def test_the_mean_is_taken_over_the_records_that_have_the_value():
    assert mean([{"a": 1.0, "b": 4.0}, {"a": 2.0}]) == {"a": 1.5, "b": 4.0}
