"""Several processes that share each batch of a training: how they find each other, and how all follow the first.

The first runs the series. Whenever it comes to a notebook that trains a model, the others execute that notebook too, as
far as the end of its training, in which `parallel` gives each its share; they write nothing. On one machine `hcm run
--devices N` starts them; on several, torchrun or a cluster's srun does, and each of them is the same `hcm run`.
"""

from __future__ import annotations

import _thread
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch.distributed import TCPStore

from hcm_helpers.acdc import DataError, one_line
from hcm_helpers.execute import CELL_TIMEOUT, NotebookError, Parameters, execute, leave_with_parent, machine

LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment)
# What they tell a process; a kernel is to hear it from `Team` alone.
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_", "TORCHELASTIC_", "SLURM_")


@dataclass
class Team:
    """The place of this process among those that train together.

    Args:
        rank: its number among all; the first, 0, runs the series.
        local_rank, node: its number on its machine, and the machine's.
        devices, nodes: processes on each machine, one a GPU or a share of the cores, and machines.
        address, port: of the store in the first process, by which it calls the others.
        launched: whether a launcher has started all of them; otherwise the first starts the others.
    """

    rank: int
    local_rank: int
    node: int
    devices: int
    nodes: int
    address: str
    port: int
    launched: bool

    @contextmanager
    def assembled(self) -> Iterator[Team]:
        """In the first process: the others are there, and wait to be called; at the end they are dismissed."""
        self.store, self.calls, self.dismissed, others = self._store(), 0, False, []
        if not self.launched:
            for number in range(1, self.devices):
                other = replace(self, rank=number, local_rank=number)
                others.append(multiprocessing.get_context("spawn").Process(target=_follow, args=(other,)))
                others[-1].start()
        watched = [threading.Thread(target=self._watch, args=(other,), daemon=True) for other in others]
        for thread in watched:
            thread.start()
        try:
            yield self
        finally:
            self.dismissed = True
            self._call({})
            for other in others:
                other.join(timeout=10)
                other.terminate()  # if it is in a training whose first process has failed

    def call(self, notebook: Path, parameters: Parameters) -> None:
        """Have the others execute a notebook as far as the end of its training, and prepare the kernel of this one."""
        port = find_free_network_port()
        self._call({"notebook": str(notebook), "parameters": parameters, "port": port})
        self._tell_kernel(port)

    def follow(self) -> None:
        """In any process but the first: execute what it calls for, until it dismisses this one.

        Raises:
            NotebookError: a cell failed.
        """
        self.store, self.calls = self._store(), 0
        while True:
            self.calls += 1
            call = json.loads(self.store.get(f"call {self.calls}"))
            if not call:
                return
            self._tell_kernel(call["port"])
            with tempfile.TemporaryDirectory() as folder:
                execute(Path(call["notebook"]), Path(folder), call["parameters"])

    def _store(self) -> TCPStore:
        waiting = timedelta(seconds=CELL_TIMEOUT)  # the others may wait for one to train alone
        return TCPStore(self.address, self.port, is_master=self.rank == 0, wait_for_workers=False, timeout=waiting)

    def _call(self, call: dict) -> None:
        self.calls += 1
        self.store.set(f"call {self.calls}", json.dumps(call))

    def _watch(self, other: multiprocessing.Process) -> None:
        other.join()
        if (other.exitcode or 0) > 0 and not self.dismissed:
            print("hcm: a process of the training has failed, see above; the run is stopped", file=sys.stderr)
            _thread.interrupt_main()

    def _tell_kernel(self, port: int) -> None:
        """What `devices.make_team` and Fabric in it will read."""
        os.environ |= {"HCM_DEVICES": str(self.devices), "HCM_NODES": str(self.nodes)}
        os.environ |= {"LOCAL_RANK": str(self.local_rank), "NODE_RANK": str(self.node)}
        os.environ |= {"MASTER_ADDR": self.address, "MASTER_PORT": str(port)}
        if not torch.cuda.is_available():
            os.environ["OMP_NUM_THREADS"] = str(max(1, machine()["cpu_cores"] // self.devices))


def find_team(devices: int | None, nodes: int | None) -> Team | None:
    """The team of this process; None if it is to train alone.

    Args:
        devices: processes on each machine, one a GPU or share of the cores; None: as torchrun has started them.
        nodes: machines; None: as torchrun has it. With both None, Slurm's tasks are no team: they may be many of an
            allocation of which this process is the only one.

    Raises:
        DataError: more than the machine has, other numbers than the launcher's, or several machines and no launcher.
    """
    try:
        launcher = next((kind() for kind in LAUNCHERS if kind.detect()), None)
    except RuntimeError as error:  # Slurm told something that Fabric cannot read a place from
        raise DataError(one_line(error)) from error
    asked = devices or nodes or isinstance(launcher, TorchElasticEnvironment)
    size = launcher.world_size() if launcher and asked else 1
    if size == 1:
        if (nodes or 1) > 1:
            how = "`hcm run` must be started on each machine, by srun or torchrun (docs/cluster.md)"
            raise DataError(f"--nodes {nodes}: {how}")
        there = torch.cuda.device_count() or machine()["cpu_cores"]
        if (devices or 1) > there:
            what = "GPUs" if torch.cuda.is_available() else "CPU cores"
            raise DataError(f"--devices {devices}: {platform.node()} has {there} {what}; choose at most as many")
        _forget_launcher()
        if (devices or 1) == 1:
            return None
        return Team(0, 0, 0, devices, 1, "127.0.0.1", find_free_network_port(), launched=False)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or size // int(os.environ.get("SLURM_NNODES", 1))
    devices = devices or (size // nodes if nodes else here)
    nodes = nodes or size // devices
    if devices * nodes != size:
        raise DataError(
            f"--devices {devices} --nodes {nodes}: {size} processes were started; choose numbers of that product"
        )
    team = Team(
        launcher.global_rank(),
        launcher.local_rank(),
        launcher.node_rank(),
        devices,
        nodes,
        launcher.main_address,
        launcher.main_port + 1,  # on its own port the launcher may listen
        launched=True,
    )
    _forget_launcher()
    return team


def _forget_launcher() -> None:
    for name in [name for name in os.environ if name.startswith(TOLD)]:
        del os.environ[name]


def _follow(team: Team) -> None:
    leave_with_parent()
    try:
        team.follow()
    except NotebookError as error:
        sys.exit(f"hcm: {error}")
    except KeyboardInterrupt:  # ended by the first process, which tells why
        sys.exit(1)
