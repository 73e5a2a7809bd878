"""Which GPUs a process uses, and the texts of NVML's errors."""

from __future__ import annotations

import pytest

from fastast.energy.nvml import Device, NvmlSystem, select_devices, visible_devices
from tests.energy.fake_driver import FakeDriver

UUIDS = ("GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-bbbb3333-0000")
INSTANCE = "MIG-cccc4444-0000"


def gpus(*names: str) -> list[Device]:
    names = names or ("T4", "T4", "T4")
    return [Device(index, UUIDS[index], name, refusal=None) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2", [1, 2]),
        ("1,-1,2", [1]),
        ("1,7,2", [1]),
        ("-1", []),
        ("1,1", []),
        ("NoDevFiles", []),
        (UUIDS[2], [2]),
        ("GPU-bbbb", [2]),
        ("GPU-aaaa", []),  # two GPUs begin so
        ("GPU-aaaa2,GPU-b", [1, 2]),
        (INSTANCE, [1]),
        ("MIG-cccc", [1]),
        (f"MIG-{UUIDS[0]}/1/0", [0]),
    ],
)
def test_visible_devices_follow_cuda(listed: str | None, expected: list[int]) -> None:
    devices = gpus()
    devices[1].mig_uuids = (INSTANCE,)
    environ = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    found, unsure = visible_devices(devices, environ)
    assert [device.index for device in found] == expected
    assert unsure is None


@pytest.mark.parametrize(
    ("environ", "wanted", "expected"),
    [
        ({}, None, [0, 1, 2]),
        ({}, [1], "PCI_BUS_ID"),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [1], [1]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, None, "PCI_BUS_ID"),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [0], [1]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, [0], [2]),
        ({}, [UUIDS[1]], [1]),
        ({}, [UUIDS[1], UUIDS[1]], [1]),
        ({"CUDA_VISIBLE_DEVICES": ""}, None, "no GPU visible"),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [3], "no GPU 3"),
        ({}, ["GPU-dddd"], "no GPU GPU-dddd"),
    ],
)
def test_mixed_gpu_models(environ: dict[str, str], wanted: list[int | str] | None, expected: list[int] | str) -> None:
    nvml = NvmlSystem(devices=tuple(gpus("T4", "A100", "T4")))
    chosen, reason = select_devices(nvml, wanted, environ)
    if isinstance(expected, str):
        assert chosen == []
        assert reason is not None
        assert expected in reason
    else:
        assert [device.index for device in chosen] == expected
        assert reason is None


PROBE = """
import json, os
from fastast.energy.nvml import open_nvml
print(json.dumps([[d.name, d.has_counter, d.power_kind, d.refusal, d.mig_uuids] for d in open_nvml().devices]))
"""


def test_capabilities_are_probed(driver: FakeDriver) -> None:
    models = ["t4", "p100", "a100", "h200", "h200-old-driver", "l4-no-counter", "counter-only", "mig", "vgpu", "blind"]
    probed = driver.start(PROBE, driver.environment(*models))()
    found = {model: device[1:4] for model, device in zip(models, probed, strict=True)}
    assert found["t4"] == [True, "instant", None]
    assert found["p100"] == [False, "instant", None]
    assert found["a100"] == [True, "instant", None]
    assert found["h200"] == [True, "instant", None]
    assert found["h200-old-driver"] == [True, "1 s average", None]
    assert found["l4-no-counter"] == [False, "1 s average", None]
    assert found["counter-only"] == [True, None, None]
    assert found["mig"][2].startswith("MIG is on")
    assert found["vgpu"][2].startswith("a virtual GPU")
    assert found["blind"][2].startswith("neither energy counter")
    assert [device[4] for device in probed if device[4]] == [["MIG-00000007-aaaa-bbbb-cccc-0123456789ab"]]


INIT = """
import json, os
from fastast.energy.energy_meter import EnergyMeter
notes = {}
for code in (4, 9, 12, 15, 18, 999):
    os.environ["FAKE_NVML_INIT"] = str(code)
    with EnergyMeter(cpu=False) as meter, meter.measure("w") as block:
        sum(range(1000))
    notes[code] = [block.joules, block.source, meter.watts, block.notes[0]]
print(json.dumps(notes))
"""


def test_nvml_failures_give_a_reason(driver: FakeDriver) -> None:
    found = driver.start(INIT, driver.environment("t4"))()
    expected = {
        "4": "no permission",
        "9": "driver is not loaded",
        "12": "libnvidia-ml.so.1 not found",
        "15": "lost",
        "18": "different versions",
        "999": "NVML error 999",
    }
    for code, reason in expected.items():
        assert found[code][:3] == [None, None, None]
        assert reason in found[code][3]
