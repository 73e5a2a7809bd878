"""Changing a GPU's limits through Zeus' daemon, which does it for processes without the right to.

Protocol (zeusd 0.4 and newer): https://ml.energy/zeus/zeusd/. HTTP over the Unix socket that ZEUSD_SOCK_PATH names.
The daemon knows GPUs by their index in NVML, so it must list the same models in the same order as this process sees.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

TIMEOUT_S = 5.0


class ZeusdError(Exception):
    """The daemon did not do it; the message says why."""


class Zeusd:
    """One GPU, by way of the daemon.

    Args:
        path: of its socket.
        index: of the GPU, in NVML's order.
        names: models of all GPUs, in this order.
        token: what the daemon asks for where it asks for one.

    Raises:
        ZeusdError: it does not answer, or sees other GPUs.
    """

    by = "zeusd"

    def __init__(self, path: str, index: int, names: Sequence[str], token: str | None = None) -> None:
        self._path, self._index, self._token = path, index, token
        theirs = [gpu["name"] for gpu in sorted(self._call("GET", "/discover")["gpus"], key=lambda gpu: gpu["id"])]
        if theirs != list(names):
            raise ZeusdError("zeusd sees other GPUs than this process")

    def set_power_limit(self, milliwatts: int) -> None:
        """Sets the power limit."""
        self._post("set_power_limit", power_limit_mw=milliwatts)

    def lock_clocks(self, mhz: int) -> None:
        """Keeps the SM clock at or below `mhz`."""
        self._post("set_gpu_locked_clocks", min_clock_mhz=0, max_clock_mhz=mhz)

    def unlock_clocks(self) -> None:
        """Lets the SM clock go where it wants."""
        self._post("reset_gpu_locked_clocks")

    def _post(self, action: str, **parameters: int) -> None:
        query = urlencode({"gpu_ids": self._index, **parameters, "block": "true"})
        self._call("POST", f"/gpu/{action}?{query}")

    def _call(self, method: str, target: str) -> dict:
        connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(TIMEOUT_S)
            connection.sock.connect(self._path)
            connection.request(
                method, target, headers={"Authorization": f"Bearer {self._token}"} if self._token else {}
            )
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise ZeusdError(f"zeusd answered {response.status}: {body[:200].decode(errors='replace')}")
            return json.loads(body) if method == "GET" else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ZeusdError(f"zeusd does not answer at {self._path} ({error})") from error
        finally:
            connection.close()


def zeusd_of(environ: Mapping[str, str], index: int, names: Sequence[str]) -> Zeusd | None:
    """The daemon that the environment names, or None."""
    path = environ.get("ZEUSD_SOCK_PATH")
    return Zeusd(path, index, names, environ.get("ZEUSD_TOKEN")) if path else None
