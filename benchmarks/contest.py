"""Runs a case: its contenders do their units in turn, A B A B, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.structures import Case, CaseResult, Contender, Outcome

# A newer processor with the instructions of one that has AVX2 alone: PyTorch's own kernels, oneDNN, MKL and Numba each
# have a variable of their own.
PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
    },
}


class ContenderError(Exception):
    """A contender could not do its work; the message is one line."""


class Process:
    """The process of one contender, as its parent sees it.

    Args:
        contender: what it does.
        device: on which device, where the contender uses one.
        environment: all of its variables.
    """

    def __init__(self, contender: Contender, *, device: str, environment: dict[str, str]):
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self._request = {"setup": contender.setup, "options": contender.options, "device": device}

    def set_up(self) -> dict[str, Any]:
        """Have it set up; gives ``threads``."""
        return self._ask(self._request)

    def do_unit(self) -> dict[str, float]:
        """Have it do one unit of work; gives what was measured."""
        return self._ask({})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise ContenderError(self._describe_end())
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _describe_end(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"its process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f"its process ended with exit code {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def run_case(
    case: Case,
    *,
    device: str = "cpu",
    processor: str = "native",
    rounds: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> CaseResult:
    """Measure all contenders of a case.

    Args:
        case: see ``Case``.
        device: what ``resolve_device`` gave.
        processor: of ``PROCESSORS``.
        rounds: instead of the case's own.
        report: told what happens, after each unit.

    Returns:
        What was measured; a contender that failed has its error there, and the others went on.
    """
    rounds = case.rounds if rounds is None else rounds
    environment = make_environment(case, processor)
    outcomes = {contender.name: Outcome() for contender in case.contenders}
    with contextlib.ExitStack() as stack:
        processes = {each.name: Process(each, device=device, environment=environment) for each in case.contenders}
        for process in processes.values():
            stack.callback(process.close)
        for name, process in processes.items():  # they have all begun to import by now
            report(f"{name} sets up")
            with _note_error(outcomes[name]):
                outcomes[name].threads = process.set_up()["threads"]
        for index in range(-case.warm_ups, rounds):
            for name, process in processes.items():
                if outcomes[name].error is None:
                    report(f"{name} {'warms up' if index < 0 else f'{index + 1} of {rounds}'}")
                    with _note_error(outcomes[name]):
                        sample = process.do_unit()
                        if index >= 0:
                            outcomes[name].samples.append(sample)
    return CaseResult(case, processor, outcomes)


def make_environment(case: Case, processor: str) -> dict[str, str]:
    """The variables of a case's processes: this one's, but for the processor's, and those of the case.

    They import from where this process does.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in PROCESSORS["avx2"]}
    path = os.pathsep.join(filter(None, sys.path))
    return {**inherited, "PYTHONPATH": path, **PROCESSORS[processor], **case.environment}


@contextlib.contextmanager
def _note_error(outcome: Outcome) -> Any:
    try:
        yield
    except ContenderError as error:
        outcome.error = str(error)
