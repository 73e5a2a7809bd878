"""NVIDIA GPUs through NVML: which of them this process uses, what each can measure, and why not.

Nothing here returns zero for "unknown": a figure that cannot be read is None, with the reason in words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

_GPU_NOT_FOUND = 28  # pynvml names it from version 12.550 on
NO_DRIVER = "no NVIDIA driver here (libnvidia-ml.so.1 not found)"
# NVML errors in words that say what to do.
REASONS = {
    pynvml.NVML_ERROR_UNINITIALIZED: "NVML was shut down",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "NVML does not know this device any more",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not supported by this GPU",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to read this GPU (in a container: its /dev/nvidia* is missing)",
    pynvml.NVML_ERROR_NOT_FOUND: "the GPU was not found",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "the GPU's external power cables are not attached",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_TIMEOUT: "the driver did not answer in time",
    pynvml.NVML_ERROR_IRQ_ISSUE: "the GPU has an interrupt problem",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NO_DRIVER,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver is too old to offer it",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost (fell off the bus)",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset before it can be read",
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system blocks access to the GPU",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver and its library are of different versions (driver updated: reboot to load it)"
    ),
    _GPU_NOT_FOUND: "the driver finds no GPU",
}
# Errors after which the device stays unreadable; others may be temporary.
PERMANENT = {
    *(pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NO_PERMISSION),
    *(pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_GPU_IS_LOST),
    *(pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, _GPU_NOT_FOUND),
}
INSTANT, AVERAGE = "instant", "1 s average"

MIG_REASON = "MIG is on: its counters are of the whole GPU, so no joules can be attributed to one instance"
VGPU_REASON = "a virtual GPU: any reading would be of the whole board that others share"
ORDER_REASON = (
    "GPU models differ and CUDA orders them fastest first, so a CUDA index names no certain GPU; "
    "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
)

# Keeps pynvml's array type alive: ctypes would create it again in each call, which is most of the call's cost.
_ONE_VALUE = pynvml.c_nvmlFieldValue_t * 1

# Clock limits that mean the GPU could not run as it should; a software power cap is normal in training.
_SLOWDOWN_BITS = 0x08 | 0x20 | 0x40 | 0x80  # HW slowdown, SW and HW thermal, HW power brake


class ReadError(Exception):
    """An NVML call failed: `reason` says why, `permanent` whether reading this device again is pointless."""

    def __init__(self, reason: str, permanent: bool) -> None:
        super().__init__(reason)
        self.reason, self.permanent = reason, permanent


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Conditions that a power figure depends on; None where the GPU does not report them."""

    temperature_c: int | None  # of the GPU die, degrees Celsius
    clock_mhz: int | None  # of the streaming multiprocessors
    performance_state: int | None  # 0 (fastest) to 15 (idle)
    slowed: bool | None  # clocks held down by heat or by a power brake


@dataclass(slots=True)
class Device:
    """One physical GPU, probed once."""

    index: int  # NVML's, in PCI bus order
    uuid: str  # "GPU-..." (or "GPU <index>" when not even that can be read)
    name: str  # the model
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability, (0, 0) when unknown
    mig_uuids: tuple[str, ...] = ()  # names of its MIG instances
    has_counter: bool = False  # offers the energy counter (Volta and newer)
    power_kind: str | None = None  # "instant", "1 s average", or None without power readings
    refusal: str | None = None  # why it cannot be metered, or None
    _handle: Any = field(default=None, repr=False)
    _power: Callable[[Any], float] | None = field(default=None, repr=False)

    def read(self) -> tuple[float | None, float | None]:
        """Reads the energy counter (J since the driver was loaded) and power (W).

        Returns:
            Both; None for what the GPU lacks, or could not give this time although the other one was read.

        Raises:
            ReadError: NVML gave neither, or the GPU is gone for good.
        """
        energy_j = power_w = failure = None
        try:
            if self.has_counter:
                energy_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3
        except pynvml.NVMLError as error:
            failure = error
        try:
            if self._power is not None:
                power_w = self._power(self._handle)
        except pynvml.NVMLError as error:
            failure = error
        if failure is not None and (failure.value in PERMANENT or (energy_j is None and power_w is None)):
            raise ReadError(explain(failure), failure.value in PERMANENT) from failure
        return energy_j, power_w

    def state(self) -> DeviceState:
        """Reads temperature, clock and limits."""
        handle = self._handle
        bits = _try(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return DeviceState(
            temperature_c=_try(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            clock_mhz=_try(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            performance_state=_try(pynvml.nvmlDeviceGetPerformanceState, handle),
            slowed=None if bits is None else bool(bits & _SLOWDOWN_BITS),
        )


@dataclass(frozen=True, slots=True)
class NvmlSystem:
    """What NVML knows of this machine."""

    devices: tuple[Device, ...] = ()  # every GPU that NVML lists, in PCI bus order; empty without NVML
    reason: str | None = None  # why there are none, or None
    driver: str | None = None  # its version
    cuda: tuple[int, int] | None = None  # newest CUDA version that the driver serves, as (major, minor)


def explain(error: pynvml.NVMLError) -> str:
    """An NVML error in words."""
    return REASONS.get(error.value, f"NVML error {error.value}")


def open_nvml() -> NvmlSystem:
    """Starts NVML and probes every GPU.

    NVML stays initialized: other code in the process may use it, and the handles depend on it.
    """
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return NvmlSystem(reason=explain(error))
    version = _try(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return NvmlSystem(
        devices=tuple(_probe(index) for index in range(count)),
        reason=None if count else REASONS[_GPU_NOT_FOUND],
        driver=_try(pynvml.nvmlSystemGetDriverVersion),
        cuda=None if version is None else (version // 1000, version % 1000 // 10),
    )


def _probe(index: int) -> Device:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        device = Device(index, pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle), _handle=handle)
    except pynvml.NVMLError as error:
        return Device(index, f"GPU {index}", "unknown", refusal=explain(error))
    device.capability = tuple(_try(pynvml.nvmlDeviceGetCudaComputeCapability, handle) or (0, 0))
    mig = _try(pynvml.nvmlDeviceGetMigMode, handle)
    if mig is not None and mig[0]:
        device.mig_uuids = _mig_uuids(handle)
        device.refusal = MIG_REASON
        return device
    if _try(pynvml.nvmlDeviceGetVirtualizationMode, handle) == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
        device.refusal = VGPU_REASON
        return device
    counter, counter_reason = _attempt(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    device.has_counter = counter is not None
    power, power_reason = _attempt(_instant_power_w, handle)
    if power is not None:
        device._power, device.power_kind = _instant_power_w, INSTANT
    else:
        power, power_reason = _attempt(_power_usage_w, handle)
        if power is not None:
            # GetPowerUsage became a 1 s average with Ampere, but for A100 (capability 8.0).
            device._power = _power_usage_w
            device.power_kind = AVERAGE if device.capability > (8, 0) else INSTANT
    if counter is None and power is None:
        device.refusal = f"neither energy counter ({counter_reason}) nor power ({power_reason})"
    return device


def _mig_uuids(handle: Any) -> tuple[str, ...]:
    count = _try(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    instances = (_try(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index) for index in range(count))
    uuids = (_try(pynvml.nvmlDeviceGetUUID, instance) for instance in instances if instance is not None)
    return tuple(uuid for uuid in uuids if uuid is not None)


def _instant_power_w(handle: Any) -> float:
    # With a scope (0: the whole GPU): pynvml tries that first, and a bare field costs it an exception.
    value = pynvml.nvmlDeviceGetFieldValues(handle, [(pynvml.NVML_FI_DEV_POWER_INSTANT, 0)])[0]
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return value.value.uiVal / 1e3


def _power_usage_w(handle: Any) -> float:
    return pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3


def _attempt(function: Callable, *arguments: Any) -> tuple[Any, str | None]:
    try:
        return function(*arguments), None
    except pynvml.NVMLError as error:
        return None, explain(error)


def _try(function: Callable, *arguments: Any) -> Any:
    return _attempt(function, *arguments)[0]


def visible_devices(
    devices: Sequence[Device], environ: Mapping[str, str] = os.environ
) -> tuple[list[Device], str | None]:
    """The GPUs that CUDA shows to a process, in the order of its indices.

    Follows CUDA's reading of CUDA_VISIBLE_DEVICES: indices, UUIDs or unique prefixes of them, MIG names; the list
    ends at the first entry that names nothing, and a repeated entry hides everything.

    Args:
        devices: every GPU, in PCI bus order.
        environ: the process's environment.

    Returns:
        The devices (a MIG instance counts as its GPU), and why an index names no certain GPU, or None.
    """
    mixed = len({device.name for device in devices}) > 1
    unsure = ORDER_REASON if mixed and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" else None
    listed = environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(devices), unsure
    found: dict[str, Device] = {}
    for entry in (part.strip() for part in listed.split(",")):
        device = _named(entry, devices)
        if device is None:
            break
        if entry in found:
            return [], None
        found[entry] = device
    return list(found.values()), unsure if any(entry.isdigit() for entry in found) else None


def _named(entry: str, devices: Sequence[Device]) -> Device | None:
    if entry.isdigit():
        return devices[int(entry)] if int(entry) < len(devices) else None
    if entry.startswith("MIG-GPU-"):  # drivers before 470: MIG-<GPU UUID>/<instance>/<compute instance>
        matches = [device for device in devices if device.uuid == entry[4:].split("/")[0]]
    elif entry.startswith("MIG-"):
        matches = [device for device in devices if any(uuid.startswith(entry) for uuid in device.mig_uuids)]
    elif entry.startswith("GPU-"):
        matches = [device for device in devices if device.uuid.startswith(entry)]
    else:
        return None
    return matches[0] if len(matches) == 1 else None


def select_devices(
    nvml: NvmlSystem, wanted: Sequence[int | str] | None, environ: Mapping[str, str] = os.environ
) -> tuple[list[Device], str | None]:
    """The GPUs to meter, each once.

    Args:
        nvml: result of `open_nvml`.
        wanted: CUDA indices as this process sees them, or UUIDs; None for every GPU visible to the process.
        environ: the process's environment.

    Returns:
        The devices, or an empty list and the reason.
    """
    if nvml.reason is not None:
        return [], nvml.reason
    visible, unsure = visible_devices(nvml.devices, environ)
    if wanted is None:
        if unsure is not None and "CUDA_VISIBLE_DEVICES" in environ:  # without it, the order does not matter
            return [], unsure
        chosen = {device.uuid: device for device in visible}
        return list(chosen.values()), None if chosen else "CUDA_VISIBLE_DEVICES leaves no GPU visible"
    chosen = {}
    for item in wanted:
        if isinstance(item, str):
            device = _named(item, nvml.devices)
        elif unsure is not None:
            return [], unsure
        else:
            device = visible[item] if 0 <= item < len(visible) else None
        if device is None:
            return [], f"no GPU {item} is visible to this process"
        chosen[device.uuid] = device
    return list(chosen.values()), None if chosen else "this process uses no GPU"
