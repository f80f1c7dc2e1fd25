"""``OUTPUT_DIR/run.json``: what was run, on what, and what it took, for the report and for programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from maskformer.files import json_text, unfinished

from .output_folder import tell

RECORD_NAME = "run.json"
# Facts of each folder's run in this process, the seconds that earlier parts of it took, and when this one began.
_STARTED: dict[str, tuple[dict[str, Any], float, float]] = {}


def start_record(folder: str, facts: dict[str, Any], *, resumes: bool) -> None:
    """Write what is known as a run begins.

    The record of an evaluation in the folder of a training stands in that one's, under "evaluation".

    Args:
        folder: OUTPUT_DIR, which exists.
        facts: "kind" is "training" or "evaluation"; "command" is there where it is not that of the process.
        resumes: whether the run goes on with the one that the folder holds, from its start, and adds to its seconds.
    """
    earlier = _read(folder) if resumes else {}
    earlier = earlier if earlier.get("kind") == facts["kind"] else {}
    seconds, started = earlier.get("seconds"), earlier.get("started")
    begun = {
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "started": started if isinstance(started, str) else _now(),
        "finished": None,
    }
    spent = float(seconds) if isinstance(seconds, (int, float)) else 0.0
    _STARTED[os.path.realpath(folder)] = {"version": 1, **begun, **facts}, spent, time.monotonic()
    add_to_record(folder)


def add_to_record(folder: str, *, finished: bool = False, **facts: Any) -> bool:
    """Write more of the run that this process started in a folder.

    Args:
        folder: OUTPUT_DIR.
        finished: whether the run has come to its end.
        **facts: by their names in the file.

    Returns:
        Whether this process started one there.
    """
    key = os.path.realpath(folder)
    if key not in _STARTED:
        return False
    content, spent, begin = _STARTED[key]
    content.update(facts, seconds=round(spent + time.monotonic() - begin, 1))
    if finished:
        content["finished"] = _now()
    training = _read(folder) if content["kind"] == "evaluation" else {}
    text = json_text({**training, "evaluation": content} if training.get("kind") == "training" else content, indent=1)
    try:
        with unfinished(Path(folder, RECORD_NAME)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        tell(f"{os.path.join(folder, RECORD_NAME)} cannot be written ({error.strerror}); going on without.")
    return True


def _read(folder: str) -> dict[str, Any]:
    """What an earlier run left; nothing where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(Path(folder, RECORD_NAME).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
