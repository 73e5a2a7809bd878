"""`fastast --print-completion SHELL`: completion of commands, options, their values and paths, by shtab."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from fastast.config import TrainConfig
from fastast.config.options import flag_of

SHELLS = ("bash", "zsh", "tcsh")
# How a shell completes paths, and what the help calls the arguments that are paths.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
PATHS = {
    *("A[,B...]", "C", "D", "DIR", "DIR|PACK", "FILE", "FILE.toml", "OUT", "PATH", "RUN", "RUN|FILE", "SRC"),
    *("auto|FILE", "none|imagenet|FILE", "preds.csv"),
}


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and exits."""

    def __call__(self, parser: Any, namespace: Any, shell: Any, option_string: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab: pip install shtab")
        # Those of a run are checked with its other options, so the parser has none of them.
        choices = {flag_of(field.name): field.metadata["choices"] for field in fields(TrainConfig)}
        choices = {flag: values for flag, values in choices.items() if values}
        for command in parser._subparsers._group_actions[0].choices.values():
            for action in command._actions:
                if action.metavar in PATHS:
                    action.complete = FILES
                elif set(action.option_strings) & choices.keys():
                    action.choices = choices[action.option_strings[0]]
        print(shtab.complete(parser, shell=shell))
        parser.exit()
