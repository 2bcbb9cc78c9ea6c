"""recipes/jobs/: commands on cards, several at once, until the time is over."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from recipes.cards import visible
from recipes.jobs import __main__ as command
from recipes.jobs import asking
from recipes.jobs.job import Job
from recipes.jobs.processes import Processes
from recipes.jobs.schedule import Schedule, State
from recipes.jobs.watching import FAILED, RUNS_ON
from tests.children import python_path

ROOT = Path(__file__).resolve().parents[2]
QUICK = 0.02


def schedule(out: Path, *jobs: Job, cards: int = 2, seconds: float = 30.0) -> Schedule:
    return Schedule(jobs, Processes(out), [str(card) for card in range(cards)], seconds, out=out, sleep=QUICK)


class Played:
    """A machine whose clock is that of the test: each job takes its seconds and ends with its exit code."""

    def __init__(self, takes: dict[str, float], codes: dict[str, int] | None = None) -> None:
        self.takes, self.codes, self.clock = takes, codes or {}, 0.0
        self.begun: dict[str, float] = {}
        self.written: dict[tuple[str, str], float] = {}  # when files are there

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def begin(self, job: Job, cards: Sequence[str]) -> None:
        self.begun[job.name] = self.clock

    def code(self, name: str) -> int | None:
        return self.codes.get(name, 0) if self.clock >= self.begun[name] + self.takes[name] else None

    def stop(self, name: str) -> int:
        return -2

    def collect(self, job: Job) -> tuple[str, ...]:
        return tuple(Path(file).name for file in job.writes)

    def there(self, name: str, file: str) -> bool:
        return self.clock >= self.written.get((name, file), math.inf)


def played(jobs: list[Job], takes: dict[str, float], *, cards: int = 1, seconds: float = 1640.0) -> dict[str, State]:
    """How a run ends whose jobs take what they are expected to, except some."""
    machine = Played({job.name: job.seconds for job in jobs} | takes)
    return Schedule(jobs, machine, [str(card) for card in range(cards)], seconds).run()


def stamped(name: str, cards: int = 1, seconds: float = 1.5, writes: tuple[str, ...] = ()) -> Job:
    """Writes when it began and ended, and which cards it saw."""
    lines = f"date +%s.%N; echo $CUDA_VISIBLE_DEVICES; sleep {seconds}; date +%s.%N"
    return Job(name, lines, cards, seconds, writes)


def told(out: Path, name: str) -> tuple[float, str, float]:
    begun, cards, ended = (out / f"{name}.log").read_text(encoding="utf-8").split("\n")[:3]
    return float(begun), cards, float(ended)


def test_jobs_share_the_cards(tmp_path: Path) -> None:
    jobs = [stamped("a"), stamped("b"), stamped("both", cards=2), stamped("c")]
    states = schedule(tmp_path, *jobs).run()
    assert [(state.status, state.rc) for state in states.values()] == [("ended", 0)] * 4
    seen = {job.name: told(tmp_path, job.name) for job in jobs}
    assert {seen["a"][1], seen["b"][1]} == {"0", "1"}
    assert max(seen["a"][0], seen["b"][0]) < min(seen["a"][2], seen["b"][2]), "at once"
    assert seen["both"][1] == "0,1"
    for name in ("a", "b", "c"):
        assert seen["both"][0] >= seen[name][2] or seen["both"][2] <= seen[name][0], "two cards, alone"


def test_a_job_begins_after_those_that_it_needs() -> None:
    """Others take the free cards meanwhile; those that are not in the run are not waited for."""
    long, short = Job("long", "", 1, 100), Job("short", "", 1, 60)
    needs = Job("needs", "", 1, 50, after=("long", "short", "elsewhere"))
    states = played([long, short, needs, Job("other", "", 1, 20)], {}, cards=2)
    begun = {name: state.begun for name, state in states.items()}
    assert begun == {"long": 0, "short": 0, "other": pytest.approx(60, abs=1), "needs": pytest.approx(100, abs=1)}
    failed = Played({"long": 100, "needs": 50}, {"long": 1})
    assert Schedule([needs, long], failed, ["0"], 1000).run()["needs"].rc == 0, "what failed is over as well"


def test_who_waits_for_another_job_stops_no_job_that_is_late() -> None:
    late, needs = Job("late", "", 1, 100), Job("needs", "", 1, 50, after=("late",))
    states = played([late, needs], {"late": 500})
    assert (states["late"].status, states["needs"].status) == ("ended", "ended")
    states = played([late, needs, Job("other", "", 1, 20)], {"late": 500})
    assert states["late"].status == "overtime"


def test_jobs_that_are_needed_exist(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text("a: {command: a, cards: 1, seconds: 1, writes: [], after: [b]}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a: after: b: expected other jobs of jobs\.yaml"):
        command.jobs(file)


def test_what_a_job_writes_is_copied(tmp_path: Path) -> None:
    file, nothing = tmp_path / "results/rows.json", tmp_path / "nothing"
    file.parent.mkdir()
    never = Job("never", "true", 1, 0.1, (str(nothing),))
    other = Job("other", f"echo {{}} > {file}", 1, 0.1, (str(file), str(nothing)))
    states = schedule(tmp_path / "out", never, other).run()
    assert states["never"].copied == ()
    assert states["other"].copied == ("rows.json",)
    assert (tmp_path / "out/rows.json").read_text(encoding="utf-8") == "{}\n"


def test_the_clock_ends_a_job_with_all_that_it_has_started(tmp_path: Path) -> None:
    """A shell that ignores an interrupt, and a child of it in the background."""
    child = tmp_path / "child"
    long = Job("long", f"trap '' INT; (sleep 60 & echo $! > {child}; wait)", 1, 0.1, ())
    never = Job("never", "true", 1, 50.0, ())
    fails = Job("fails", "echo no room; exit 7", 1, 0.1, ())
    begun = time.monotonic()
    states = schedule(tmp_path / "out", long, never, fails, seconds=4.0).run()
    assert time.monotonic() - begun < 50
    assert [state.status for state in states.values()] == ["stopped", "not begun", "ended"]
    assert states["fails"].rc == 7
    pid = int(child.read_text(encoding="utf-8"))
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text(encoding="utf-8").split()[2] == "Z"
    found = json.loads((tmp_path / "out/state.json").read_text(encoding="utf-8"))
    assert found["jobs"]["never"]["status"] == "not begun"


def test_a_detached_run_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(ROOT)
    file, out = tmp_path / "jobs.yaml", tmp_path / "out"
    file.write_text("slow: {command: 'sleep 2; echo done here', cards: 1, seconds: 2, writes: []}\n", encoding="utf-8")
    words = ["run", "slow", "--file", str(file), "--out", str(out), "--seconds", "60", "--detach"]
    assert command.main(words) == 0
    assert command.main(["wait", str(out), "--seconds", "0"]) == RUNS_ON
    assert command.main(["wait", str(out), "--seconds", "60"]) == 0
    assert re.search(r"slow +ended +0 +\d+ +2 +63 +done here", capsys.readouterr().out)
    found = json.loads((out / "state.json").read_text(encoding="utf-8"))
    found["jobs"]["slow"]["status"], found["pid"] = "running", 2**30
    (out / "state.json").write_text(json.dumps(found), encoding="utf-8")
    assert command.main(["wait", str(out), "--seconds", "0"]) == 2
    assert "has died" in capsys.readouterr().err


def test_a_job_that_takes_far_too_long_makes_room_for_those_that_wait() -> None:
    """As it was seen: a job of 180 seconds took 755, and six behind it did not begin."""
    jobs = [Job("slow", "", 1, 180, ("rows.json",)), *(Job(f"next {n}", "", 1, 180) for n in range(6))]
    states = played(jobs, {"slow": 755})
    slow = states.pop("slow")
    assert (slow.status, slow.rc, slow.copied) == ("overtime", -2, ("rows.json",))
    assert 1.5 * 180 + 60 < slow.seconds <= 1.5 * 180 + 61
    assert [state.status for state in states.values()] == ["ended"] * 6
    assert states["next 0"].begun == slow.seconds


def test_a_job_may_take_too_long_where_nothing_waits_for_its_cards() -> None:
    jobs = [Job("slow", "", 1, 180), Job("beside", "", 1, 180), Job("large", "", 1, 1500)]
    states = played(jobs[:1], {"slow": 755})
    assert (states["slow"].status, states["slow"].seconds) == ("ended", 755)
    states = played(jobs[:2], {"slow": 755}, cards=2)
    assert (states["slow"].status, states["beside"].status) == ("ended", "ended")
    # what would not end in time does not wait
    states = played([jobs[0], jobs[2]], {"slow": 755})
    assert (states["slow"].status, states["large"].status) == ("ended", "not begun")


def test_a_job_has_a_limit_of_its_own() -> None:
    jobs = [Job("slow", "", 1, 180, most=700), Job("next", "", 1, 180)]
    assert played(jobs, {"slow": 690})["slow"].status == "ended"
    slow = played(jobs, {"slow": 755})["slow"]
    assert slow.status == "overtime"
    assert 700 < slow.seconds <= 701
    with pytest.raises(ValueError, match=r"slow: most: 100: expected at least its seconds, 180\."):
        Job("slow", "", 1, 180, most=100)


def test_the_job_furthest_beyond_its_limit_is_stopped_and_no_other() -> None:
    jobs = [Job("a", "", 1, 100, most=100), Job("b", "", 1, 100, most=110), Job("next", "", 1, 100)]
    states = played(jobs, {"a": 350, "b": 350}, cards=2)
    assert [state.status for state in states.values()] == ["overtime", "ended", "ended"]
    # a job for two cards needs both
    jobs[2] = Job("next", "", 2, 100)
    states = played(jobs, {"a": 350, "b": 350}, cards=2)
    assert [state.status for state in states.values()] == ["overtime", "overtime", "ended"]


def test_a_run_is_asked_to_stop_jobs(tmp_path: Path) -> None:
    jobs = [Job("runs", "", 1, 100), Job("done", "", 1, 5), Job("waits", "", 1, 100), Job("last", "", 1, 100)]
    asking.ask(tmp_path, ["last"])  # of an earlier run
    machine = Played({job.name: job.seconds for job in jobs})
    made = Schedule(jobs, machine, ["0", "1"], 1000, out=tmp_path)
    for at in range(60):
        assert made.step()
        machine.clock = float(at)
        if at == 50:
            asking.ask(tmp_path, ["runs", "last", "done"])
    states = made.run()
    assert {name: state.status for name, state in states.items()} == {
        "runs": "cancelled",
        "done": "ended",
        "waits": "ended",
        "last": "dropped",
    }
    assert states["runs"].seconds == 50
    assert states["last"].rc is None


def test_a_failure_is_told_at_once_and_a_hopeless_job_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.chdir(ROOT)
    file, out = tmp_path / "jobs.yaml", tmp_path / "out"
    file.write_text(
        "fails: {command: 'seq 11 19; exit 7', cards: 1, seconds: 1, writes: []}\n"
        "long: {command: 'sleep 300', cards: 2, seconds: 300, most: 400, writes: []}\n"
        "last: {command: 'true', cards: 2, seconds: 1, writes: []}\n",
        encoding="utf-8",
    )
    words = ["run", "fails", "long", "last", "--file", str(file), "--out", str(out), "--seconds", "600", "--detach"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it begins in the background
    try:
        assert command.main(words) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert command.main(["wait", str(out), "--seconds", "200"]) == FAILED
    told = capsys.readouterr().out
    assert re.search(r"fails +ended +7 +\d+ +1 +62 +19", told)
    assert f"fails, exit 7: the end of {out}/fails.log\n    15\n    16\n    17\n    18\n    19\n" in told
    assert command.main(["wait", str(out), "--seconds", "0"]) == RUNS_ON, "it was told of"
    assert command.main(["stop", str(out), "lung"]) == 2
    assert "there is no job 'lung'. Did you mean long?" in capsys.readouterr().err
    assert command.main(["stop", str(out), "last", "fails", "--seconds", "200"]) == 0
    assert "fails: ended already\n" in capsys.readouterr().out
    assert command.main(["stop", str(out), "long", "--seconds", "200"]) == 0
    assert re.search(r"long +cancelled +-2 +\d+ +300 +400", capsys.readouterr().out)
    assert command.main(["wait", str(out), "--seconds", "200"]) == 1
    assert re.search(r"last +dropped +0 +1 +62\n", capsys.readouterr().out)
    assert command.main(["stop", str(out), "long"]) == 0
    assert "long: cancelled already\n" in capsys.readouterr().out


def test_a_dry_run_says_when_each_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine that has no GPUs, and as the run itself would go."""
    file, out = tmp_path / "jobs.yaml", tmp_path / "out"
    sizes = {"a": (1, 100), "b": (1, 250), "both": (2, 50), "c": (1, 60), "late": (1, 700)}
    file.write_text(
        "".join(
            f"{name}: {{command: 'false', cards: {cards}, seconds: {seconds}, writes: []}}\n"
            for name, (cards, seconds) in sizes.items()
        ),
        encoding="utf-8",
    )
    words = ["--file", str(file), "--out", str(out), "--seconds", "900", "--cards", "2", "--dry-run"]
    assert command.main(["run", *sizes, *words]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told[:5]] == [
        ["begins", "ends", "cards", "job"],
        ["0", "100", "0", "a"],
        ["0", "250", "1", "b"],
        ["100", "160", "0", "c"],
        ["160", "860", "0", "late"],
    ]
    # two cards are never free at once: a bad order, which is seen
    assert told[5] == "The last ends 860 s after the beginning, of 900; cards are in use for 65% of it."
    assert told[6] == "Not begun, since they would end too late: both."
    assert not out.exists()
    states = played(list(command.jobs(file).values()), {}, cards=2, seconds=900)
    assert [state.begun for state in states.values()] == [0, 0, None, 100, 160]
    good = ["both", "b", "a", "c"]
    assert command.main(["run", *good, *words]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:5]] == [
        ["0", "50"],
        ["50", "300"],
        ["50", "150"],
        ["150", "210"],
    ]


def test_cards_are_those_that_the_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    assert visible() == ["2", "GPU-5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible() == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "pack", "--out", "x", "--seconds", "1"], "there is no job 'pack'. Did you mean packs?"),
        (["run", "packs", "--out", "x", "--seconds", "1"], "packs: more GPUs than the 1 that there are here."),
        (["run", "packs", "--out", "x", "--seconds", "1", "--dry-run"], "--cards N plans for a machine of N."),
        (["wait", "nothing-here", "--seconds", "0"], "there is no run in nothing-here."),
        (["stop", "nothing-here", "packs"], "there is no run in nothing-here."),
    ],
)
def test_what_it_refuses(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_while_a_job_begins_ends_it(sign: int) -> None:
    """It would hold its card for ever."""

    class Interrupted(Played):
        def begin(self, job: Job, cards: Sequence[str]) -> None:
            os.kill(os.getpid(), sign)
            super().begin(job, cards)

    # as the command has them; a shell lets what it begins in the background ignore the first
    signs = signal.SIGINT, signal.SIGTERM
    own = [signal.signal(each, signal.default_int_handler) for each in signs]
    run = Schedule([Job("a", "", 1, 5), Job("b", "", 1, 5)], Interrupted({"a": 5, "b": 5}), ["0"], 100.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.run()
    finally:
        for each, before in zip(signs, own, strict=True):
            signal.signal(each, before)
    assert {name: state.status for name, state in run.states.items()} == {"a": "stopped", "b": "waiting"}
    assert run.free.parts == {"0": 1.0}


def test_an_interrupted_run_says_so_in_one_line(tmp_path: Path) -> None:
    """And ends its jobs. Whatever a command of recipes/ does, it is told so; Python ends it by the signal."""
    jobs = tmp_path / "jobs.yaml"
    own = "{cards: 1, seconds: 60, writes: [], command: 'kill -INT $PPID; sleep 60'}"
    jobs.write_text(f"kills: {own}", encoding="utf-8")
    words = ["run", "kills", "--file", str(jobs), "--out", str(tmp_path / "out"), "--seconds", "600"]
    ended = subprocess.run(
        [sys.executable, "-m", "recipes.jobs", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": python_path()},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        timeout=120,
    )
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr.splitlines()[-1] == "interrupted; what was written by then stays."
    assert "Traceback" not in ended.stderr
    state = json.loads((tmp_path / "out/state.json").read_text(encoding="utf-8"))["jobs"]["kills"]
    assert (state["status"], state["rc"]) == ("stopped", -signal.SIGINT)
