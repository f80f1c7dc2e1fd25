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

from maskformer.tools.benchmark.structures import Case, CaseResult, Contender, Outcome

# glibc gives blocks of 32 MB and more back to the system when they are freed, and every new one faults in page by page.
_ALWAYS_KEEP = str(1 << 32)
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "raised": {"MALLOC_MMAP_THRESHOLD_": _ALWAYS_KEEP, "MALLOC_TRIM_THRESHOLD_": _ALWAYS_KEEP},
}
_THRESHOLDS = tuple(ALLOCATORS["raised"])


class ContenderError(Exception):
    """A contender could not do its work; the message is one line."""


class Process:
    """The process of one contender, as its parent sees it.

    Args:
        contender: what it does.
        device: on which device, where the contender uses one.
        environment: variables besides this process's own.
    """

    def __init__(self, contender: Contender, *, device: str, environment: dict[str, str]):
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        inherited = {name: value for name, value in os.environ.items() if name not in _THRESHOLDS}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "maskformer.tools.benchmark.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
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
    allocator: str = "default",
    rounds: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> CaseResult:
    """Measure all contenders of a case.

    Args:
        case: see ``Case``.
        device: what ``resolve_device`` gave.
        allocator: of ``ALLOCATORS``.
        rounds: instead of the case's own.
        report: told what happens, after each unit.

    Returns:
        What was measured; a contender that failed has its error there, and the others went on.
    """
    rounds = case.rounds if rounds is None else rounds
    environment = {**ALLOCATORS[allocator], **case.environment}
    outcomes = {contender.name: Outcome() for contender in case.contenders}
    with contextlib.ExitStack() as stack:
        processes: dict[str, Process] = {}
        for contender in case.contenders:
            process = Process(contender, device=device, environment=environment)
            stack.callback(process.close)
            report(f"{contender.name} sets up")
            with _note_error(outcomes[contender.name]):
                outcomes[contender.name].threads = process.set_up()["threads"]
                processes[contender.name] = process
        for index in range(-case.warm_ups, rounds):
            for name, process in processes.items():
                if outcomes[name].error is None:
                    report(f"{name} {'warms up' if index < 0 else f'{index + 1} of {rounds}'}")
                    with _note_error(outcomes[name]):
                        sample = process.do_unit()
                        if index >= 0:
                            outcomes[name].samples.append(sample)
    return CaseResult(case, allocator, outcomes)


@contextlib.contextmanager
def _note_error(outcome: Outcome) -> Any:
    try:
        yield
    except ContenderError as error:
        outcome.error = str(error)
