"""The argument parser of every command: mistakes in one line, and a help in two lengths."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from fastast.config.options import flag_of
from fastast.config.removed import removed_option


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that takes no abbreviations and says what is wrong in one line.

    Attributes:
        advanced: names of arguments that only `--help-all` shows.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **options})
        self.advanced: set[str] = set()
        for kind in (None, str):  # of every argument that is text
            self.register("type", kind, _text)

    def error(self, message: str) -> NoReturn:
        flag = "--help-all" if self.advanced else "--help"
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} {flag}` lists the options)\n")

    def add_help_all(self) -> None:
        """Adds `--help-all`."""
        self.add_argument(
            "--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all options, and exit"
        )

    def add_removed(self, name: str, instead: str | None = None) -> None:
        """Adds an option that ends with a line that says what to use instead.

        Args:
            name: its field's name.
            instead: the line after the flag, for an option that this command alone does not have; by default what
                became of an option of earlier versions.
        """
        self.add_argument(
            flag_of(name),
            action=_Removed,
            nargs="?",
            const=instead or removed_option(name),
            help=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
        )

    def format_help(self) -> str:
        """The help without the advanced options."""
        return self.format_options(self.advanced)

    def format_options(self, hidden: set[str]) -> str:
        """The help without the arguments of these names."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(action for action in group._group_actions if action.dest not in hidden)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def any_text(argument: str) -> str:
    """The type of an argument that may be empty."""
    return argument


def _text(argument: str) -> str:
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty; give a value, or leave it out")
    return argument


class _Formatter(argparse.HelpFormatter):
    """Keeps the line breaks of examples, and wraps all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_options(set()), end="")
        parser.exit()


class _Removed(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        parser.error(f"{self.option_strings[0]} {self.const}")
