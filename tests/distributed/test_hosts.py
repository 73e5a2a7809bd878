"""Two machines: network namespaces with a wire between them, host names and disks of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.run_folder import RunFolder
from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

STALL_S = 10
EPOCHS, NUM_TRAIN = 20, 240
COMMAND = ("--device", "cpu", "--arch", "tests.nets:tiny", "--image-size", 32, "--batch-size", 8, "--threads", 1)
COMMAND += (
    "--epochs",
    EPOCHS,
    "--gate",
    "forward",
    "--target",
    0.3,
    "--log-every",
    5,
    "--checkpoint-every",
    0.02,
    "--stall-timeout",
    STALL_S,
)
# After how many retries TCP gives up: 6 s here. The default, 15, is a quarter of an hour, and torchrun waits for it.
TCP_RETRIES = 4


class Machine:
    """A network namespace with an end of the wire, and processes in it that see a host name and a disk of their own.

    Attributes:
        name, address: of the host.
        store: the folder that its processes see as `disk`, their working directory.
    """

    def __init__(self, number: int, scratch: Path) -> None:
        self.number, self.name, self.address = number, f"host{number}", f"10.77.0.{number}"
        self.namespace = f"fastast-{os.getpid()}-{number}"
        self.store, self.disk = scratch / self.name, scratch / "disk"
        self.store.mkdir()
        (self.store / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 host1\n10.77.0.2 host2\n")
        (self.store / "resolv.conf").touch()  # so that no look-up waits for a server that is out of reach

    def start(self, log: Path, arguments: Sequence[object], **variables: object) -> subprocess.Popen[bytes]:
        """Starts Python there."""
        prepare = 'hostname "$0" && for f in hosts resolv.conf; do mount --bind "$1/$f" /etc/$f; done'
        prepare += ' && mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'
        words = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", prepare]
        words += [self.name, self.store, self.disk, sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": "cache"}
        environment.update((name, str(value)) for name, value in variables.items())
        with open(log, "wb") as file:
            return subprocess.Popen(
                list(map(str, words)), stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def set_wire(self, state: str) -> None:
        """Unplugs the wire ("down") or plugs it in again ("up")."""
        ip("-n", self.namespace, "link", "set", "wire", state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs iproute2 and util-linux")
    (tmp_path / "disk").mkdir()
    both = [Machine(number, tmp_path) for number in (1, 2)]
    made = []
    try:
        for machine in both:
            if subprocess.run(["ip", "netns", "add", machine.namespace], capture_output=True).returncode:
                pytest.skip("needs root to make network namespaces")
            made.append(machine)
        first, second = (machine.namespace for machine in both)
        ip("-n", first, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", second)
        for machine in both:
            ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "wire")
            ip("-n", machine.namespace, "link", "set", "lo", "up")
            retries = f"echo {TCP_RETRIES} > /proc/sys/net/ipv4/tcp_retries2"
            ip("netns", "exec", machine.namespace, "sh", "-c", retries)
            machine.set_wire("up")
        yield both
    finally:
        for machine in made:
            listed = subprocess.run(["ip", "netns", "pids", machine.namespace], capture_output=True, text=True)
            for pid in listed.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", machine.namespace)


def by_torchrun(machines: list[Machine], logs: Path, *options: object) -> list[subprocess.Popen[bytes]]:
    """Starts `fastast train` on both by torchrun; each prints to its own file in `logs`."""
    words = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", "host1:29400", "-m", "fastast", "train", *COMMAND, *options]
    logs.mkdir()
    return [machine.start(logs / machine.name, words) for machine in machines]


def by_srun(machines: list[Machine], logs: Path, *words: object) -> list[subprocess.Popen[bytes]]:
    """Starts Python on both with the variables of a SLURM job step."""
    step = {"SLURM_JOB_ID": 4711, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": 0}
    logs.mkdir()
    return [
        machine.start(
            logs / machine.name, words, **step, SLURM_STEP_NODELIST="host[1-2]", SLURM_PROCID=machine.number - 1
        )
        for machine in machines
    ]


def codes(processes: list[subprocess.Popen[bytes]], timeout_s: float) -> list[int]:
    """Exit codes of processes that end in time."""
    until = time.monotonic() + timeout_s
    return [process.wait(max(0.1, until - time.monotonic())) for process in processes]


def wait_for_lines(folder: RunFolder, count: int) -> None:
    """Waits until a run has written so many lines, and a checkpoint."""
    until = time.monotonic() + 300
    while not (folder.last.exists() and folder.metrics.read_bytes().count(b"\n") >= count):
        assert time.monotonic() < until, "training did not begin"
        time.sleep(0.1)


def errors(logs: Path, machine: Machine) -> list[str]:
    return [line for line in (logs / machine.name).read_text().splitlines() if line.startswith("fastast train: error")]


def test_a_cut_wire_ends_the_run_and_it_resumes_once_it_is_back(machines, pictures, tmp_path):
    first, second = machines
    run = RunFolder(first.store / "cut")
    options = ("--data", pictures, "--out", "cut")
    processes = by_torchrun(machines, tmp_path / "cut", *options)
    wait_for_lines(run, 30)
    second.set_wire("down")
    assert codes(processes, 4 * STALL_S) == [1, 1]
    for machine in machines:
        (line,) = errors(tmp_path / "cut", machine)
        assert all(part in line for part in (f"({machine.name}) lost the others", "network", "--resume"))
    assert not run.summary.exists()
    second.set_wire("up")

    assert codes(by_torchrun(machines, tmp_path / "continued", *options, "--resume"), 240) == [0, 0]
    summary = json.loads(run.summary.read_text())
    (resumed,) = summary["resumes"]
    assert 0 < resumed["offered"] < summary["samples"]["offered"] == EPOCHS * NUM_TRAIN
    assert summary["hardware"]["world_size"] == 2
    undisturbed = RunFolder(first.store / "undisturbed")
    assert codes(by_torchrun(machines, tmp_path / "logs", "--data", pictures, "--out", "undisturbed"), 240) == [0, 0]
    assert differences(run, undisturbed) == []
    assert not (second.store / "cut").exists()  # rank 0 writes, and the others need not see it


def test_a_cut_wire_ends_both_processes_without_torchrun(machines, pictures, tmp_path):
    words = ("-m", "fastast", "train", *COMMAND, "--data", pictures, "--out", "cut")
    processes = by_srun(machines, tmp_path / "cut", *words)
    wait_for_lines(RunFolder(machines[0].store / "cut"), 30)
    machines[0].set_wire("down")
    began = time.monotonic()
    assert codes(processes, 3 * STALL_S) == [1, 1]
    assert time.monotonic() - began > STALL_S / 2  # a short interruption is waited for
    assert [len(errors(tmp_path / "cut", machine)) for machine in machines] == [1, 1]


IMPATIENT = """
import datetime, sys
from fastast.cli import main
from fastast.distributed import process_group
process_group._JOIN_TIMEOUT = datetime.timedelta(seconds=5)
sys.exit(main(sys.argv[1:]))
"""


def test_a_wrong_host_name_is_refused_in_one_line(machines, pictures, tmp_path):
    for machine in machines:  # as Debian's installer leaves it
        hosts = machine.store / "hosts"
        hosts.write_text(hosts.read_text().replace(f"{machine.address} ", "127.0.1.1 "))
    words = ("-c", IMPATIENT, "train", *COMMAND, "--data", pictures, "--out", "unmet")
    assert codes(by_srun(machines, tmp_path / "unmet", *words), 240) == [2, 2]
    for machine in machines:
        (line,) = errors(tmp_path / "unmet", machine)
        assert all(part in line for part in ("does not reach the others", "GLOO_SOCKET_IFNAME"))
