"""The soak of `make soak`, shortened: what it looks at works, and nothing is left over."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import soak

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc"),
]


def test_a_short_soak_leaves_no_descriptor_thread_or_process():
    """Its slopes are of too few samples to be held to the limit; a leak of 1 MB an image or step is seen."""
    command = [sys.executable, "-W", "ignore", "tests/faults/soak.py", "--steps", "30", "--images", "40"]
    done = subprocess.run(command, cwd=soak.REPOSITORY, capture_output=True, text=True, timeout=600)
    *_, steps, images, before, after = done.stdout.splitlines()
    assert before.removeprefix("before: ") == after.removeprefix("after:  "), done.stdout
    for line, total in ((steps, "30 steps"), (images, "40 images")):
        assert line.startswith(total)
        slope = float(line.split("second half ")[1].split(" KB")[0])
        assert slope < 1_000_000, line


def test_the_slope_is_that_of_the_second_half():
    curve = soak.Curve(100)
    for done in range(1, 101):
        curve.done.append(done)
        curve.kilobytes.append(1000.0 if done <= 50 else 2.0 * done)
    assert curve.slope() == pytest.approx(2000)
    assert any(
        "100 steps: resident memory 1 MB at first" in line for line in soak.report(soak.Soak(curve, curve, None, None))
    )


def test_belongings_see_a_file_a_thread_and_a_process():

    before, stop = soak.Belongings.now(), threading.Event()
    thread = threading.Thread(target=stop.wait)
    with open("/dev/null"), subprocess.Popen(["sleep", "60"]) as child:
        thread.start()
        seen = soak.Belongings.now()
        child.kill()
        stop.set()
    thread.join()
    assert (seen.descriptors, seen.threads, seen.children) == (
        before.descriptors + 1,
        before.threads + 1,
        before.children + 1,
    )
    assert soak.Belongings.now() == before
