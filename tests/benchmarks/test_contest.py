"""Cases run in real child processes: order, isolation, time, memory, failures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import make_environment, run_case
from benchmarks.structures import MEMORY, SECONDS, Case, CaseResult, Contender, Target

MB = 1 << 20


def contender(name: str, function: str, /, **options: Any) -> Contender:
    return Contender(name, f"tiny_workloads:{function}", options)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contest") / "order"


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(order: Path, told: list[str]) -> CaseResult:
    contenders = (
        contender("A", "work", path=str(order), name="A", seconds=0.2, megabytes=200),
        contender("B", "work", path=str(order), name="B", megabytes=20, numbers={SECONDS: 7, "size": 3}),
        *(contender(where, "fail", where=where) for where in ("setup", "unit", "process")),
    )
    targets = (Target(SECONDS, 0.5, "setup"), Target("size", 3, "B"))
    case = Case("case", "group", contenders, targets, environment={"OF_THE_CASE": "4"}, rounds=2)
    return run_case(case, processor="avx2", report=told.append)


def test_contenders_take_turns(result: CaseResult, order: Path):
    assert order.read_text().split() == ["A", "B"] * 3  # a warm-up and two rounds
    assert [len(outcome.samples) for outcome in result.outcomes.values()] == [2, 2, 0, 0, 0]


def test_every_unit_is_told_of(result: CaseResult, told: list[str]):
    assert told[:2] == ["A sets up", "B sets up"]
    assert "A warms up" in told and told[-2:] == ["A 2 of 2", "B 2 of 2"]


def test_time_is_taken_around_a_unit_unless_it_takes_its_own(result: CaseResult):
    assert 0.2 <= min(result.ours.values(SECONDS)) < 3
    assert result.outcomes["B"].values(SECONDS) == [7, 7] and result.outcomes["B"].median("size") == 3


def test_memory_is_the_peak_of_a_unit_above_what_the_set_up_holds(result: CaseResult):
    assert 180 * MB < min(result.ours.values(MEMORY)) < 260 * MB
    assert 15 * MB < min(result.outcomes["B"].values(MEMORY)) < 80 * MB  # not the set-up's peak, nor the other's


def test_a_unit_may_fork():
    result = run_case(Case("case", "group", (contender("A", "fork"),), rounds=1, warm_ups=0))
    assert result.ours.values("result") == [3]


def test_a_contender_that_fails_is_told_of_in_one_line_and_the_others_go_on(result: CaseResult):
    assert {name: outcome.error for name, outcome in result.outcomes.items()} == {
        "A": None,
        "B": None,
        "setup": "ValueError: nothing to set up",
        "unit": "RuntimeError: no unit today",
        "process": "its process was ended by signal 6",
    }
    assert [(verdict.value, verdict.met) for verdict in result.verdicts()] == [(None, None)] * 2


def test_contenders_get_the_device_the_processors_variables_and_the_cases_environment(result: CaseResult):
    sample = result.ours.samples[0]
    assert (sample["is cpu"], sample["has avx512"], sample["OF_THE_CASE"]) == (1, 0, 4)


def test_the_native_processor_has_its_own_instructions_whatever_this_process_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert "ATEN_CPU_CAPABILITY" not in make_environment(Case("case", "group", ()), "native")


PARENT = """
from benchmarks.contest import run_case
from benchmarks.structures import Case, Contender
run_case(Case("case", "group", (Contender("A", "tiny_workloads:lock", {"path": %r}),)))
"""


@pytest.mark.slow
def test_a_process_ends_with_its_parent_even_within_a_unit(tmp_path: Path):
    fcntl = pytest.importorskip("fcntl", reason="POSIX")
    path = tmp_path / "lock"
    environment = make_environment(Case("case", "group", ()), "native")
    parent = subprocess.Popen([sys.executable, "-c", PARENT % str(path)], env=environment)
    deadline = time.monotonic() + 100
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)  # for the first unit to begin
    parent.kill()
    parent.wait()
    begin = time.monotonic()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits until the process has ended
    assert time.monotonic() - begin < 20
