"""`--log mlflow`: a run of MLflow, by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME (else "fastast")."""

from __future__ import annotations

import os
import time
from typing import Any

from fastast.loggers.extra_logs import EPOCH_TAGS, STEP_TAGS
from fastast.loggers.logged_ids import logged_id
from fastast.run_folder import RunFolder

_LONGEST = 500  # characters of an option


class MlflowLogger:
    """Continues the run of the same folder. Figures are sent by a thread of MLflow.

    Args and methods as of `ExtraLogger`.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fastast")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id

        def create() -> str:
            run = self._client.create_run(experiment_id, run_name=folder.path.resolve().name)
            for key, value in config.items():
                self._client.log_param(run.info.run_id, key, str(value)[:_LONGEST])
            return run.info.run_id

        self._id = logged_id(folder, "mlflow", create)
        self._client.update_run(self._id, status="RUNNING")
        # It keeps every point that it is sent, so those that it has are not sent again.
        self._last = {
            tag: max((point.step for point in self._client.get_metric_history(self._id, tag)), default=-1)
            for tag in (*STEP_TAGS.values(), *EPOCH_TAGS.values())
        }

    def add(self, offered: int, values: dict[str, float]) -> None:
        self._send({tag: value for tag, value in values.items() if offered > self._last[tag]}, offered)

    def finish(self, values: dict[str, float]) -> None:
        self._send(values, 0)

    def _send(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        metrics = [Metric(tag, value, now_ms, step) for tag, value in values.items()]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics, synchronous=False)

    def close(self) -> None:
        from mlflow import flush_async_logging

        flush_async_logging()
        self._client.set_terminated(self._id)
