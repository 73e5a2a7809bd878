"""`--log wandb`: a run of Weights & Biases, of the project that WANDB_PROJECT names, or "fastast"."""

from __future__ import annotations

import os
import secrets
from typing import Any

from fastast.loggers.logged_ids import logged_id
from fastast.run_folder import RunFolder


class WandbLogger:
    """Continues the run of the same folder. WANDB_MODE=offline writes to the folder's wandb/ only.

    Args and methods as of `ExtraLogger`.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fastast"),
            id=logged_id(folder, "wandb", lambda: secrets.token_hex(4)),
            name=folder.path.resolve().name,
            resume="allow",
            dir=str(folder.path),
            config=config,
            settings=wandb.Settings(console="off", silent=True),  # the console is ours
        )

    def add(self, offered: int, values: dict[str, float]) -> None:
        if offered >= self._run.step:  # it has the others
            self._run.log(values, step=offered)

    def finish(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def close(self) -> None:
        self._run.finish()
