"""How far the work is: rates, the time left, lines and the live line, all by a clock of our own."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.progress import Progress, bar
from emb_tool.progress.rate import MIN_ADVANCES, WINDOW_SECONDS, RateEstimator, format_rate
from emb_tool.progress.relay import ProgressReceiver, ProgressSender
from emb_tool.report import Report


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


# -- one estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "unit", "told"),
    [
        (12.3, "layers", "12.3 s/layer"),
        (250.4, "layers", "250 s/layer"),
        (1.0, "texts", "1.0 texts/s"),
        (0.4, "layers", "2.5 layers/s"),
        (1 / 27533, "texts", "27,533 texts/s"),
        (1 / 12.3e6, "B", "12 MB/s"),
        (1 / 5e5, "B", "2.0 s/MB"),
    ],
)
def test_a_rate_below_one_a_second_is_told_as_seconds_of_a_unit(
    seconds: float, unit: str, told: str
) -> None:
    assert format_rate(seconds, unit) == told


def test_the_time_left_is_that_of_the_rate(clock: Clock) -> None:
    rate = RateEstimator(12, "layers", clock)
    clock.after(100)  # the model is opened: no measure of the layers
    rate.advance(1)
    assert rate.seconds_per_unit() is None
    assert rate.summary() == "1/12 layers, 1:40"
    for _ in range(4):
        clock.after(12.5)
        rate.advance(1)
    assert rate.summary("loss 0.1") == "5/12 layers, 12.5 s/layer, loss 0.1, 1:27 left"
    clock.after(7.5)  # a part of the next one
    assert rate.summary() == "5/12 layers, 12.5 s/layer, 1:20 left"


def test_what_was_there_before_is_done_and_no_speed(clock: Clock) -> None:
    rate = RateEstimator(30_000, "texts", clock)
    rate.skip(27_000)
    for _ in range(11):
        clock.after(1)
        rate.advance(9)
    assert rate.summary() == "27,099/30,000 texts, 9.0 texts/s, 5:22 left"


def test_a_rate_is_that_of_the_last_half_minute(clock: Clock) -> None:
    rate = RateEstimator(None, "texts", clock)
    for speed in (1000, 20):
        for _ in range(60):
            clock.after(1)
            rate.advance(speed)
    assert WINDOW_SECONDS == 30
    assert rate.summary() == "61,200 texts, 20 texts/s"


def test_batches_a_millisecond_apart_are_no_rate(clock: Clock) -> None:
    rate = RateEstimator(100, "texts", clock)
    rate.advance(32)
    clock.after(0.001)
    rate.advance(32)
    assert rate.summary() == "64/100 texts, 0:00"


def test_slow_units_have_a_rate_and_one_that_hangs_slows_it(clock: Clock) -> None:
    rate = RateEstimator(10, "chains", clock)
    for _ in range(5):
        rate.advance(1)
        clock.after(100)
    assert rate.seconds_per_unit() == pytest.approx(100)  # over MIN_ADVANCES of them, window or not
    assert MIN_ADVANCES == 3
    assert rate.summary() == "5/10 chains, 100 s/chain, 6:40 left"
    clock.after(900)
    assert rate.seconds_per_unit() == pytest.approx((200 + 1000) / 2)
    assert rate.summary() == "5/10 chains, 600 s/chain"  # how long such a unit takes is not known


def test_small_tensors_do_not_tell_how_long_a_table_takes(clock: Clock) -> None:
    rate = RateEstimator(17_600_000, "B", clock)
    for _ in range(20):
        rate.advance(5_000)
        clock.after(0.01)
    clock.after(11)
    assert rate.summary() == "0.1/17.6 MB, 118 s/MB"


def test_a_fast_loop_keeps_few_marks_and_its_rate(clock: Clock) -> None:
    rate = RateEstimator(10**6, "rows", clock)
    for _ in range(100_000):
        clock.after(0.001)
        rate.advance(5)
    assert len(rate._marks) < 200
    assert rate.seconds_per_unit() == pytest.approx(1 / 5000, rel=0.01)


# -- without a terminal ---------------------------------------------------------------------------


def test_a_line_each_half_minute_also_within_one_slow_unit(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(clock=clock, timed=False)

    def lines() -> list[str]:
        progress.tick()
        return capsys.readouterr().err.splitlines()

    with progress.task("compress"):
        clock.after(29)
        assert lines() == []
        clock.after(1)
        assert lines() == ["compress: 0:30"]
        with progress.task("gptq"), progress.task("gptq", 3, "layers") as advance:
            clock.after(31)
            assert lines() == ["gptq: 0/3 layers, 0:31"]
            advance(1)
            clock.after(20)
            advance(1)
            assert lines() == []
            clock.after(10)
            assert lines() == ["gptq: 2/3 layers, 20.0 s/layer, 0:10 left"]
        with progress.task("checking the written files"):
            clock.after(30)
            assert lines() == ["checking the written files: 0:30"]
            with progress.task("held-out texts", 2500, "texts") as advance:
                advance(200)
                clock.after(30)
                assert lines() == [
                    "checking the written files, held-out texts: 200/2,500 texts, 0:30"
                ]
    clock.after(60)
    assert lines() == []


def test_advancing_prints_a_line_where_no_other_clock_does(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(clock=clock, timed=False)
    with progress.task("encoding", None, "texts") as advance:
        advance(10)
        clock.after(40)
        advance(20)
    assert capsys.readouterr().err == "encoding: 30 texts, 2.0 s/text\n"


def test_quiet_prints_no_line_and_verbose_says_what_was_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for level, told in ((0, ""), (1, ""), (2, "writing: 3.0/3.0 MB in 1:05\n")):
        progress = Progress(level, clock=clock, timed=False)
        with progress.task("compress"), progress.task("writing", 3_000_000, "B") as advance:
            clock.after(65)
            progress._last_line = clock.now
            advance(3_000_000)
        assert capsys.readouterr().err == told


# -- on a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 40])
def test_the_live_line_fits_the_terminal(width: int) -> None:
    told = "1,200/250,000 texts, 27 texts/s, loss 0.1234, 2:33:09 left"
    line = bar(("training", told, 0.25), width, 0.0)
    assert line.cell_len < width
    assert line.plain.startswith("⠋ training")
    assert ("2:33:09 left" in line.plain) == (width == 80)
    assert not line.plain.count("\n")


def test_the_bar_has_the_share_and_goes_first_where_there_is_no_room() -> None:
    line = bar(("gptq", "3/12 layers", 0.25), 80, 0.0).plain
    assert line == "⠋ gptq  " + "━" * 20 + "  3/12 layers"
    full = bar(("gptq", "3/12 layers", 0.25), 80, 0.0)
    assert [len(span) for span in (str(full.plain)[s.start : s.end] for s in full.spans)] == [5, 15]
    assert "━" not in bar(("gptq", "x" * 66, 0.25), 80, 0.0).plain


def test_a_terminal_shows_every_phase_and_is_left_clean(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(clock=clock, timed=False)
    with progress.task("compress"):
        for name in ("reading headers and settings", "checking the written files"):
            with progress.task(name):
                progress._live.refresh()
            assert f"{name}  0:00" in screen.getvalue()
        progress.warn("a warning")
    assert "warning: a warning" in screen.getvalue()
    assert progress._live is None


# -- from the child to its parent -----------------------------------------------------------------


def test_a_child_shows_its_tasks_within_its_parents(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(clock=clock, timed=False)
    sent: list[str] = []
    shown: list[str] = []
    with progress.task("compress"), progress.task("checking the written files"):
        with ProgressReceiver(progress) as listener:

            def send(line: str) -> None:
                sent.append(line)
                listener.receive(json.loads(line)["progress"])
                shown.append(": ".join(progress.status()[:2]))

            with ProgressSender(send, clock).task("held-out texts", 100, "texts") as advance:
                for _ in range(100):
                    advance(1)
                    clock.after(0.0625)
        assert shown[-1] == "checking the written files: 0:06"
    assert shown[0] == "checking the written files, held-out texts: 0/100 texts, 0:00"
    assert shown[-2] == ("checking the written files, held-out texts: 100/100 texts, 16 texts/s")
    assert 20 < len(sent) < 40  # a line each fifth of a second, not a text


def test_a_child_that_dies_leaves_no_task_open(clock: Clock) -> None:
    progress = Progress(clock=clock, timed=False)
    with progress.task("compress"), ProgressReceiver(progress) as listener:
        listener.receive(["begin", "held-out texts", 5, "texts"])
        listener.receive(["advance", "a line that is none of ours"])
        assert progress.status()[0] == "held-out texts"
    assert progress.status()[0] == ""


def test_what_a_library_prints_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from emb_tool.evaluate.tensors_check import TensorsCheck
    from emb_tool.runtime.check_process import CheckTarget, ask

    script = tmp_path / "emb_tool" / "evaluate" / "check.py"
    script.parent.mkdir(parents=True)
    for folder in (script.parent, script.parent.parent):
        (folder / "__init__.py").write_text("")
    script.write_text(
        "import sys, json\n"
        "sys.stderr.write('x' * 200_000)\n"  # more than a pipe holds
        "print('a library says hello'); print('5')\n"
        "print(json.dumps({'progress': ['begin', 'a', None, '']}))\n"
        "name = json.loads(sys.stdin.readline())['target']['name']\n"
        "print(json.dumps({'report': {'schema': 1, 'verb': name}}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    target = CheckTarget(folder=tmp_path, name="the name", device="cpu", dtype="fp32")
    check = TensorsCheck(target=target)
    assert ask(check, Progress(0)).verb == "the name"
    for fault, error in (
        ({"failed": "it does not open"}, "do not pass their check: it does not open"),
        ({"invalid_input": "a model is broken", "hint": "mend it"}, "a model is broken"),
    ):
        script.write_text(f"print({json.dumps(json.dumps(fault))})")
        with pytest.raises(EmbToolError, match=error) as caught:
            ask(check, Progress(0))
        assert isinstance(caught.value, InvalidInput) == ("hint" in fault)
    script.write_text("raise SystemExit('it is broken')")
    with pytest.raises(RunFailed, match="it is broken"):
        ask(check, Progress(0))


# -- the time in all ------------------------------------------------------------------------------


def test_wall_time_is_in_the_report_that_lies_in_the_folder(
    run_cli: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.runs import check_here

    check_here(monkeypatch)
    said = run_cli("compress", tiny_bert, "-m", "int:bits=8", "-o", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    whole = json.loads(said.out)["timings"]["total_seconds"]
    kept = Report.from_json(json.loads((tmp_path / "out" / REPORT).read_text())).timings
    phases = sum(value for name, value in kept.items() if name != "total_seconds")
    assert phases <= kept["total_seconds"] <= whole
