from __future__ import annotations

from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage

from maskformer.engine.hooks.reports import KEPT, PERIOD, HistoryHook


def test_only_the_latest_values_are_kept_and_averages_are_of_all():
    steps = 2 * KEPT + PERIOD
    with EventStorage(0) as storage:
        hook = HistoryHook()
        hook.trainer = SimpleNamespace(storage=storage, iter=0)
        for step in range(steps):
            hook.trainer.iter = storage.iter = step
            storage.put_scalar("loss", step)
            hook.after_step()
            assert len(storage.history("loss").values()) < KEPT + PERIOD
    history = storage.history("loss")
    assert history.values() == [(float(step), step) for step in range(steps - KEPT, steps)]
    assert history.global_avg() == pytest.approx((steps - 1) / 2)
    assert storage.latest()["loss"] == (steps - 1, steps - 1)
    assert storage.count_samples("loss", 20) == 20
