"""``report.html``: how good a run's model is, where it fails and what was run, alone or against another run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from maskformer.structures import InputError

from .curves import Chart, make_chart
from .evaluation_view import COUNTS, KINDS, count_pictures, describe_evaluation
from .pages import write_page
from .run_folder import LAYER_LOSS, SCORE, SHOWN_SCORES, Points, RunFolder, entries, mapping, number, read_run

PAGE = "report.html"
PICTURE_BYTES = 12_000_000  # of all pictures of a page, which become a third longer in it


def write_report(output_dir: Path, against: Path | None = None) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        output_dir: of a training or evaluation.
        against: another one to compare it with.

    Returns:
        The page.

    Raises:
        InputError: a folder is not that of a run, or the page cannot be written.
    """
    run, other = read_run(output_dir), None if against is None else read_run(against)
    page = output_dir / PAGE
    try:
        write_page(page, "report.html", describe(run, other))
    except OSError as error:
        raise InputError(f"{page} cannot be written ({error.strerror}): make room, or copy the run.") from error
    return page


def describe(run: RunFolder, other: RunFolder | None = None) -> dict[str, Any]:
    """All that the template shows."""
    runs = [run] if other is None else [run, other]
    names = _name_runs(runs)
    others = {} if other is None else other.evaluations
    pairs = [(evaluation, others.get(dataset)) for dataset, evaluation in run.evaluations.items()]
    alone = [f"{names[-1]}: what it measured on {name} is not shown." for name in others if name not in run.evaluations]
    picture_bytes = PICTURE_BYTES // max(1, sum(count_pictures(*pair) for pair in pairs))
    head = [f"{name}: " if other is not None else "" for name in names]
    return {
        "title": "Report of " + " against ".join(names),
        "names": names,
        "summary": _summarize(run.facts),
        "notes": [start + note for start, each in zip(head, runs) for note in each.notes] + alone,
        "evaluations": [describe_evaluation(*pair, names[-1], picture_bytes) for pair in pairs],
        "charts": _draw_charts(run.metrics, {} if other is None else other.metrics),
        "commands": [(name, command) for name, each in zip(names, runs) if (command := _command(each.facts))],
        "facts": _tabulate([_list_facts(each.facts) for each in runs]),
        "changed_keys": _list_changes(run.facts),
        "differing_keys": _compare_keys(run.facts, other.facts) if other and run.facts and other.facts else None,
        "counts": COUNTS,
    }


def _name_runs(runs: list[RunFolder]) -> list[str]:
    """By their folders' names; by the paths where those are one."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _draw_charts(ours: dict[str, Points], theirs: dict[str, Points]) -> list[Chart]:
    """Losses, each kind of score on each dataset, learning rate and speed, as far as there is anything."""
    groups = {
        "Total loss": ["total_loss"],
        "Losses of the last layer": [name for name in ours if LAYER_LOSS.fullmatch(name)],
        **_group_scores(ours),
        "Learning rate": ["lr"],
        "Images a second": ["images_per_second"],
    }
    charts = []
    for title, names in groups.items():
        lines = [{name.rpartition("/")[2]: run[name] for name in names if name in run} for run in (ours, theirs)]
        kind = {"is_loss": "loss" in title, "is_score": "scores" in title}
        charts.append(make_chart(title, lines[0], lines[1], **kind))
    return [chart for chart in charts if chart is not None]


def _group_scores(metrics: dict[str, Points]) -> dict[str, list[str]]:
    """The names of the scores to be drawn together, by the title of their chart."""
    matches = [match for name in metrics if (match := SCORE.fullmatch(name))]
    groups: dict[str, list[str]] = {}
    for kind, drawn in SHOWN_SCORES.items():
        found = [match for match in matches if match["kind"] == kind and match["metric"] in drawn]
        for match in sorted(found, key=lambda match: (match["dataset"] or "", drawn.index(match["metric"]))):
            place = f", {match['dataset']}" if match["dataset"] else ""
            groups.setdefault(f"{KINDS[kind].capitalize()} scores{place}", []).append(match[0])
    return groups


def _command(facts: dict[str, Any]) -> str:
    words = facts.get("command")
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def _summarize(facts: dict[str, Any]) -> str:
    """What was run, in a sentence; empty where nobody wrote it down."""
    if not facts:
        return ""
    told = _list_facts(facts)
    work = "Evaluation" if facts.get("kind") == "evaluation" else "Training"
    parts = [
        told.get("model", ""),
        f"on {told['data']}" if "data" in told else "",
        f"{told['iterations']} iterations" if "iterations" in told and work == "Training" else "",
        f"{told['time']} on {told.get('device', 'an unknown device')}" if "time" in told else "",
    ]
    state = "" if facts.get("finished") else " It has not finished: it is running, or was stopped."
    return f"{work}: {', '.join(part for part in parts if part)}.{state}"


def _list_facts(facts: dict[str, Any]) -> dict[str, str]:
    """What is known of a run, by its name for people."""
    model, data = mapping(facts, "model"), entries(facts, "data")
    parameters, seconds = number(model.get("parameters")), number(facts.get("seconds"))
    memory = number(facts.get("peak_memory_mb"))
    architecture = _text(model.get("architecture"))
    told = {
        "kind": _text(facts.get("kind")),
        "configuration": _text(facts.get("config_file")),
        "model": architecture + (f" ({parameters / 1e6:.1f} M parameters)" if parameters else ""),
        "weights": _text(facts.get("weights")),
        "data": ", ".join(f"{_text(entry.get('dataset'))} ({_text(entry.get('images'))} images)" for entry in data),
        "iterations": _text(facts.get("iterations")),
        "device": _text(facts.get("device")),
        "processes": _text(facts.get("processes")),
        "started": _text(facts.get("started")),
        "finished": _text(facts.get("finished")),
        "time": "" if seconds is None else format_seconds(seconds),
        "peak memory": "" if memory is None else f"{memory:,.0f} MB",
        **{f"{_text(name)}": _text(version) for name, version in mapping(facts, "versions").items()},
    }
    return {name: text for name, text in told.items() if text}


def _text(value: Any) -> str:
    """A value as people read it."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)


def format_seconds(seconds: float) -> str:
    """A time in its two largest units: 45 s, 3 min 20 s, 3 h 12 min, 2 d 4 h."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    rest = round(seconds)
    parts: list[str] = []
    for name, size in units:
        if rest >= size or (parts and len(parts) < 2) or (name == "s" and not parts):
            parts.append(f"{rest // size} {name}")
            rest %= size
    return " ".join(parts[:2])


def _tabulate(runs: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    """The facts of the runs beside one another."""
    return [
        (name, [facts.get(name, "") for facts in runs])
        for name in dict.fromkeys(name for facts in runs for name in facts)
    ]


def _list_changes(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, default, value) of each key that the run set."""
    return [(key, _text(default), _text(value)) for key, (default, value) in sorted(_changes(facts).items())]


def _changes(facts: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = mapping(facts, "changed").items()
    return {key: (pair[0], pair[1]) for key, pair in pairs if isinstance(pair, list) and len(pair) == 2}


def _compare_keys(ours: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, our value, their value) of each key that differs but the folder; what a run did not set has its default."""
    mine, its = _changes(ours), _changes(theirs)
    rows = []
    for key in sorted({*mine, *its} - {"OUTPUT_DIR"}):
        default = (mine.get(key) or its[key])[0]
        values = [changes[key][1] if key in changes else default for changes in (mine, its)]
        if values[0] != values[1]:
            rows.append((key, _text(values[0]), _text(values[1])))
    return rows
