"""Measures ours against the plain definitions and against peers: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import build_cases
from benchmarks.contest import PROCESSORS, run_case
from benchmarks.machine import describe_machine
from benchmarks.plot import write_pictures
from benchmarks.report import describe_results, format_loading, format_numbers, format_table, write_html, write_json
from benchmarks.structures import Case, CaseResult
from maskformer.engine.accelerator import resolve_device
from maskformer.reports.console import ProgressLine
from maskformer.structures import InputError

DESCRIPTION = """\
Measure time and peak memory of this package against the plain definitions of its algorithms and against other
implementations. Contenders of a case take turns, each in a process of its own; ratios are ours over theirs."""

EPILOG = """\
exit code: 0 if every contender did its work, 1 if one failed (targets that are missed change nothing), 2 after a
mistake in the arguments. Close other programs first: the spread beside each ratio shows how much they disturb."""

REPORT_NAME = "benchmark.json"
PAGE_NAME = "benchmark.html"


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="as MODEL.DEVICE (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups or cases to run (default: all)")
    parser.add_argument("--rounds", type=int, help="units of each contender that count (default: the case's own)")
    text = "with this processor's own instructions, with AVX2 alone, or one after the other (default: %(default)s)"
    parser.add_argument("--processor", choices=[*PROCESSORS, "both"], default="native", help=text)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, measures nothing")
    parser.add_argument("--list", action="store_true", help="list groups and cases, and stop")
    folder = Path("output/benchmark")
    parser.add_argument("--output-dir", type=Path, default=folder, help="report and pictures (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases, prints the table; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return _benchmark(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _benchmark(args: argparse.Namespace) -> int:
    cases = select_cases(build_cases(args.quick), args.only)
    if args.list:
        print("\n".join(f"{case.group}: {case.name}" for case in cases))
        return 0
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f"--rounds is {args.rounds}, expected 1 or more.")
    device = resolve_device(args.device)
    if device == "cpu" and not args.only:
        cases = [case for case in cases if not case.on_accelerators]
    machine = describe_machine(device)
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"} | {"device": device}
    processors = list(PROCESSORS) if args.processor == "both" else [args.processor]
    results: list[CaseResult] = []
    try:
        for result in _run(cases, device=device, processors=processors, rounds=args.rounds):
            results.append(result)
            report = describe_results(results, machine, settings)
            write_json(report, args.output_dir / REPORT_NAME)  # after each: an interrupted run keeps what it has
    finally:
        if results:
            _tell(results, machine, args.output_dir)
    return 1 if any(outcome.error for result in results for outcome in result.outcomes.values()) else 0


def _run(cases: Sequence[Case], *, device: str, processors: Sequence[str], rounds: int | None) -> Any:
    total = sum(_count_steps(case, rounds) for case in cases) * len(processors)
    with ProgressLine("Benchmark", total, unit="steps") as line:
        for case in cases:
            for processor in processors:

                def report(note: str, name: str = case.name) -> None:
                    line.advance(note=f"{name}: {note}")

                yield run_case(case, device=device, processor=processor, rounds=rounds, report=report)


def _count_steps(case: Case, rounds: int | None) -> int:
    return len(case.contenders) * (1 + case.warm_ups + (case.rounds if rounds is None else rounds))


def select_cases(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases that are named, by themselves or by their groups; all where nothing is.

    Raises:
        InputError: a name is neither a group nor a case.
    """
    known = {name for case in cases for name in (case.group, case.name)}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            groups = ", ".join(dict.fromkeys(case.group for case in cases))
            raise InputError(f"--only names {name!r}{hint}; expected a group ({groups}) or a case: see --list.")
    return [case for case in cases if not names or {case.group, case.name} & set(names)]


def _tell(results: Sequence[CaseResult], machine: dict[str, str], folder: Path) -> None:
    print(format_table(results))
    for lines in (format_numbers(results), format_loading(results)):
        if lines:
            print("\n" + lines)
    for result in results:
        for name, outcome in result.outcomes.items():
            if outcome.error is not None:
                print(f"failed: {result.case.name}, {name}: {outcome.error}", file=sys.stderr)
    pictures = write_pictures(results, folder)
    write_html(results, machine, pictures, folder / PAGE_NAME)
    for path in (folder / REPORT_NAME, folder / PAGE_NAME, *pictures):
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
