"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
    """Bad usage or input: one line that names the thing and its remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class ReportedByOtherRank(InputError):
    """An InputError of another rank of a distributed run, which has shown it."""
