"""Services that keep many runs to be compared, W&B and MLflow, as writers of metrics and pictures.

What they cannot take now (no network, a full disk) is told once, and the training goes on; ``metrics.json`` has it all.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from detectron2.utils.events import get_event_storage

from maskformer.runs.output_folder import tell
from maskformer.structures import SCREEN, InputError

from .writers import PictureWriter, values_after

PROJECT = "maskformer"  # unless an environment variable of the service names another
LONGEST_PAUSE = 64  # writes that are left out after one that failed
LONGEST_REASON = 500  # characters of what a client says went wrong


class Tracker(PictureWriter):
    """A run of a service, which begins with the first thing that is written, and which a resumed training goes on with.

    Args:
        folder: of the training; its name is the run's.
        config: keys and values to show beside the metrics.
    """

    def __init__(self, folder: str, config: Mapping[str, Any]):
        self.folder = os.path.abspath(folder)
        self.config = {**config, "report": os.path.join(self.folder, "report.html")}
        self.run_id = uuid.uuid4().hex
        self._run: Any = None
        self._last_iteration = -1
        self._failures = self._pause = 0

    def state_dict(self) -> dict[str, Any]:
        """Which run it is, and what it has."""
        return {"run_id": self.run_id, "last_iteration": self._last_iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with that run."""
        self.run_id, self._last_iteration = state["run_id"], state["last_iteration"]

    def write(self) -> None:
        """Write what is new, if the service takes it."""
        for iteration, values in values_after(self._last_iteration):
            self._last_iteration = iteration
            finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
            self._try(partial(self.log, iteration=iteration, values=finite))

    def write_pictures(self, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures of the current iteration, if the service takes them."""
        iteration = get_event_storage().iter
        self._try(partial(self.log_pictures, iteration=iteration, pictures=pictures))

    def close(self) -> None:
        """End the run, as far as it has begun."""
        if self._run is not None:
            self._try(self.finish)
            self._run = None

    def _try(self, action: Callable[[Any], None]) -> None:
        if self._pause > 0:
            self._pause -= 1
            return
        try:
            self._run = self._run or self.start()
            action(self._run)
            self._failures = 0
        except Exception as error:  # of any of the libraries that a service's client is made of
            if not self._failures:
                reason = str(error).partition("\n")[0][:LONGEST_REASON]
                tell(f"{type(self).__name__} cannot write ({reason}); going on, and trying again now and then.")
            self._failures += 1
            self._pause = min(2**self._failures, LONGEST_PAUSE)

    def start(self) -> Any:
        """Begin the run, or go on with it; what the others get."""
        raise NotImplementedError

    def log(self, run: Any, iteration: int, values: Mapping[str, float]) -> None:
        """Write metrics of an iteration."""
        raise NotImplementedError

    def log_pictures(self, run: Any, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write pictures of an iteration."""
        raise NotImplementedError

    def finish(self, run: Any) -> None:
        """End the run."""
        raise NotImplementedError


class WandbWriter(Tracker):
    """Weights & Biases: WANDB_MODE, WANDB_PROJECT and its other environment variables hold. Files go to ``wandb/``."""

    def start(self) -> Any:
        """See the base class."""
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=self.folder,
            id=self.run_id,
            name=os.environ.get("WANDB_NAME", os.path.basename(self.folder)),
            config={**self.config},
            allow_val_change=True,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        # A resumed training goes back to its checkpoint, but W&B's own steps only go up.
        run.define_metric("*", step_metric="iteration")
        if not run.offline:
            SCREEN.info("wandb: %s", run.url)
        return run

    def log(self, run: Any, iteration: int, values: Mapping[str, float]) -> None:
        """See the base class."""
        run.log({**values, "iteration": iteration})

    def log_pictures(self, run: Any, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See the base class."""
        import wandb

        run.log({"iteration": iteration, **{name: wandb.Image(picture) for name, picture in pictures.items()}})

    def finish(self, run: Any) -> None:
        """See the base class."""
        run.finish()


class MlflowWriter(Tracker):
    """MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold."""

    TAG = "maskformer.run_id"  # MLflow chooses ids itself

    def start(self) -> Any:
        """See the base class."""
        from mlflow import MlflowClient

        client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
        if found := client.search_runs([experiment_id], f"tags.`{self.TAG}` = '{self.run_id}'"):
            client.update_run(found[0].info.run_id, status="RUNNING")
            return client, found[0].info.run_id
        tags = {self.TAG: self.run_id, "report": self.config["report"]}
        run = client.create_run(experiment_id, tags=tags, run_name=os.path.basename(self.folder))
        for key, value in self.config.items():
            client.log_param(run.info.run_id, key, str(value)[:LONGEST_PARAMETER])
        return client, run.info.run_id

    def log(self, run: Any, iteration: int, values: Mapping[str, float]) -> None:
        """See the base class."""
        from mlflow.entities import Metric

        client, run_id = run
        now = int(1000 * time.time())
        metrics = [Metric(_allowed(name), value, now, iteration) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_AT_ONCE])

    def log_pictures(self, run: Any, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """See the base class."""
        client, run_id = run
        for name, picture in pictures.items():
            client.log_image(run_id, picture, artifact_file=f"{_allowed(name)}/{iteration:07d}.png")

    def finish(self, run: Any) -> None:
        """See the base class."""
        client, run_id = run
        client.set_terminated(run_id)


LONGEST_PARAMETER, METRICS_AT_ONCE = 500, 1000  # what every server of MLflow takes
TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def _allowed(name: str) -> str:
    """A name as MLflow takes it: of classes, any sign may be in one."""
    return re.sub(r"[^\w./ -]", "_", name)


def check_installed(names: list[str]) -> None:
    """Refuse services of ``LOG.WRITERS`` whose package is not installed, in every process alike.

    Raises:
        InputError: says what to install.
    """
    for name in TRACKERS.keys() & set(names):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"LOG.WRITERS is {names}, but {name} is not installed: pip install 'maskformer[{name}]', or take it "
                "out of the list."
            )
