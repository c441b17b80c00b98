import pytest

from ossicle import progress
from ossicle.progress import Progress, track


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_throughput_and_eta(clock):
    shown = Progress("Reading", 400, unit="utterances")
    assert (shown.count(), shown.rate(), shown.eta()) == ("0/400 utterances", 0.0, "")
    clock.now_s += 10
    shown.update(100)
    assert shown.count() == "100/400 utterances, 10/s"
    assert shown.eta() == "ETA 0:30"
    shown.advance(300)
    assert shown.eta() == ""


def test_earlier_work_does_not_count_for_the_throughput(clock):
    shown = Progress("Training", 20_000, unit="steps")
    shown.begin_at(1000)
    clock.now_s += 10
    shown.update(1025)
    assert shown.count() == "1025/20000 steps, 2.5/s"
    assert shown.eta() == "ETA 2:06:30"


def test_an_unknown_total_has_no_eta(clock):
    shown = Progress("Reading", None)
    clock.now_s += 1
    shown.update(4)
    assert (shown.count(), shown.eta()) == ("4, 4/s", "")


def test_lines_replace_the_bar_in_a_log(clock, capsys):
    with Progress("Reading", 100, unit="files") as shown:
        for _ in range(4):
            clock.now_s += 10
            shown.advance(20, status="[loss] 1.2")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Reading  60/100 files, 2/s  [loss] 1.2  ETA 0:20"]
    assert not shown.is_bar


@pytest.mark.parametrize(("options", "expected"), [({"enabled": False}, ""), ({"lines": False}, "said\n")])
def test_lines_can_be_turned_off(clock, capsys, options, expected):
    with Progress("Reading", 100, **options) as shown:
        clock.now_s += 100
        shown.advance(20)
        shown.say("said")
    assert capsys.readouterr().err == expected


def test_track_yields_every_item(clock, capsys):
    def items():
        for i in range(4):
            clock.now_s += 31
            yield i

    assert list(track(items(), "Reading", total=4, unit="files")) == [0, 1, 2, 3]
    assert capsys.readouterr().err.splitlines()[0] == "Reading  1/4 files, 0.032/s  ETA 1:33"
    assert list(track([5, 6], "Reading")) == [5, 6]
