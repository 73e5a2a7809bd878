"""Every logger of `--log` by its name, without importing its package.

A new one is one file with a class like `ExtraLogger`, and one line here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastast.errors import InputError

if TYPE_CHECKING:
    from fastast.loggers.extra_logs import ExtraLogger


@dataclass(frozen=True, slots=True)
class LoggerEntry:
    """What can be known of a logger before it is imported.

    Attributes:
        path: "module:Class".
        module: that has to be installed for it.
        package: by which pip installs that.
    """

    path: str
    module: str
    package: str


LOGGERS: dict[str, LoggerEntry] = {
    "tensorboard": LoggerEntry(
        "fastast.loggers.tensorboard:TensorBoardLogger", "torch.utils.tensorboard", "tensorboard"
    ),
    "wandb": LoggerEntry("fastast.loggers.wandb:WandbLogger", "wandb", "wandb"),
    "mlflow": LoggerEntry("fastast.loggers.mlflow:MlflowLogger", "mlflow", "mlflow-skinny sqlalchemy alembic"),
}


def logger_names(text: str | None) -> list[str]:
    """The names in a comma-separated `--log`, each once.

    Raises:
        InputError: there is no such logger.
    """
    names = list(dict.fromkeys(part.strip() for part in text.split(","))) if text else []
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"--log {text}: {name or 'an empty name'} is no logger; choose from {', '.join(LOGGERS)}")
    return names


def require_loggers(text: str | None) -> None:
    """Refuses a `--log` that cannot work here.

    Raises:
        InputError: the package is missing, or too old.
    """
    for name in logger_names(text):
        try:
            importlib.import_module(LOGGERS[name].module)
        except ImportError as error:
            raise InputError(
                f"--log {name}: {error}; run `pip install {LOGGERS[name].package}`, or leave it out"
            ) from error


def logger_class(name: str) -> type[ExtraLogger]:
    """The class of a logger, one of the keys of `LOGGERS`."""
    module, _, class_name = LOGGERS[name].path.partition(":")
    return getattr(importlib.import_module(module), class_name)
