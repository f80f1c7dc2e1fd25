from __future__ import annotations

import sys

import pytest

from benchmarks.workloads import start_up
from maskformer.structures import InputError


@pytest.mark.slow
@pytest.mark.parametrize("to", ["import", "first_step"])
@pytest.mark.parametrize("command", ["maskformer", "detectron2"])
def test_contenders_start(command: str, to: str):
    start_up.start(command=command, to=to)()


@pytest.mark.slow
def test_process_stops_after_the_first_step():
    train = "trainer = Trainer()\ntrainer.register_hooks([IterationTimer()])\ntrainer.train(0, 5)\n"
    trainer = "from detectron2.engine import TrainerBase\nclass Trainer(TrainerBase):\n"
    steps = f"{trainer}    def run_step(self): assert self.iter == 0\n{train}"
    start_up.run_process([sys.executable, "-W", "ignore", "-c", start_up.STOP_AFTER_STEP + steps])
    never = f"{trainer}    def run_step(self): assert False\n{train}"
    with pytest.raises(InputError, match="AssertionError"):
        start_up.run_process([sys.executable, "-W", "ignore", "-c", start_up.STOP_AFTER_STEP + never])


def test_process_that_fails_tells_its_error():
    with pytest.raises(InputError, match="code 3: no such thing"):
        start_up.run_process([sys.executable, "-c", "import sys; sys.stderr.write('no such thing'); sys.exit(3)"])
