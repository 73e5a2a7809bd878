"""Fails a test where its code would wait for the device, also on a CPU, where nothing ever waits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result's shape, or Python value, depends on the tensor's data.
WAITING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "allclose",
    "nonzero",
    "argwhere",
    "masked_select",
    "bincount",
    "repeat_interleave",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
}
# Methods that hand the data to Python without an operator.
READING = {"numpy", "tolist", "__array__", "__dlpack__"}


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in WAITING or "output_size" in kwargs, f"{func} waits for the device"
        if name.startswith(("index", "_index", "_unsafe_index")) and len(args) > 1:
            for index in args[1] if isinstance(args[1], (list, tuple)) else ():
                assert index is None or index.dtype not in (torch.bool, torch.uint8), f"{func} by a mask"
        if name == "copy_" and not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
            assert args[0].device == args[1].device, f"{func} from {args[1].device} to {args[0].device} waits"
        if name == "_to_copy" and not kwargs.get("non_blocking", False):
            device = kwargs.get("device") or args[0].device
            assert torch.device(device) == args[0].device, f"{func} from {args[0].device} to {device} waits"
        return func(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, may_read: set[CodeType]) -> None:
        super().__init__()
        self.may_read = may_read

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING:
            assert self._allowed(), f"Tensor.{func.__name__} waits for the device"
        return func(*args, **(kwargs or {}))

    def _allowed(self) -> bool:
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code in self.may_read:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False


@contextlib.contextmanager
def no_sync(*may_read: Callable[..., Any]) -> Iterator[None]:
    """Raises AssertionError on every operator or method that would wait for the device, or read its data.

    Args:
        may_read: functions below which tensors may be read with `.numpy()` and the like, because theirs lie on the
            host, such as `LaggedReader._read`. Operators that wait stay forbidden there.
    """
    with _Methods({function.__code__ for function in may_read}), _Operators():
        yield
