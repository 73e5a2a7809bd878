"""The training loop. The module can be called, and then is `fastast.python.training.train`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastast.python.run import Run


class _CallableModule(ModuleType):
    """Importing this package makes it `fastast.train`, whatever else had that name."""

    def __call__(self, **arguments: Any) -> Run:
        from fastast.python.training import train  # the floor above, which is not imported until it is called

        return train(**arguments)


sys.modules[__name__].__class__ = _CallableModule
