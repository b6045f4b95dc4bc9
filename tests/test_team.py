"""Processes that train together find each other, and follow the first from notebook to notebook."""

import os
import threading
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments import MPIEnvironment
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from stand_ins import write_notebook

from hcm_helpers import run, team
from hcm_helpers.acdc import DataError
from hcm_helpers.devices import make_team
from hcm_helpers.team import Team, find_team

TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2"},
    **{"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"},
}
SLURM = {
    **{"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "hcm", "SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_NODEID": "1"},
    **{"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODELIST": "node[0-1]", "MASTER_PORT": "29500"},
    "SLURM_NTASKS_PER_NODE": "4",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher but what a test sets, and whatever it changes is undone."""
    for name in [name for name in os.environ if name.startswith(team.TOLD)]:
        monkeypatch.delenv(name)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_one_process_is_no_team():
    assert find_team(None, None) is None
    assert find_team(1, 1) is None


def test_nobody_but_the_team_tells_a_training_where_it_is(monkeypatch):
    os.environ |= SLURM
    monkeypatch.setattr(MPIEnvironment, "detect", lambda: pytest.fail("MPI was started"))
    assert make_team().world_size == 1


def test_torchrun_tells_the_place_and_kernels_do_not_hear_of_it():
    os.environ |= TORCHRUN
    found = find_team(None, None)
    assert found == Team(5, 1, 2, devices=2, nodes=4, address="node0", port=29501, launched=True)
    assert "WORLD_SIZE" not in os.environ
    assert "TORCHELASTIC_RUN_ID" not in os.environ


def test_slurm_tells_the_place():
    os.environ |= SLURM
    found = find_team(4, 2)
    assert (found.rank, found.local_rank, found.node, found.devices, found.nodes) == (5, 1, 1, 4, 2)
    assert found.address == "node0"
    assert "SLURM_NTASKS" not in os.environ
    os.environ |= SLURM
    assert find_team(None, None) is None, "eight tasks may be an allocation's, and this process alone in it"
    assert "SLURM_NTASKS" not in os.environ


def test_what_fabric_cannot_read_is_one_sentence():
    os.environ |= {name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"}
    with pytest.raises(DataError, match=r"--ntasks=8.* Use `--ntasks-per-node=8` instead"):
        find_team(4, 2)


def test_numbers_that_are_not_the_launchers_are_refused():
    os.environ |= TORCHRUN
    with pytest.raises(DataError, match="--devices 4 --nodes 3: 8 processes were started"):
        find_team(4, 3)


def test_more_machines_need_a_launcher_and_more_devices_than_there_are_are_refused(monkeypatch):
    with pytest.raises(DataError, match=r"--nodes 2: `hcm run` must be started on each machine, by srun or torchrun"):
        find_team(2, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(team, "machine", lambda: {"cpu_cores": 2})
    with pytest.raises(DataError, match=r"--devices 3: .* has 2 .*; choose at most as many"):
        find_team(3, None)


def test_the_others_execute_what_the_first_calls_for_until_they_are_dismissed(monkeypatch):
    seen = []
    monkeypatch.setattr(team, "execute", lambda path, into, parameters: seen.append((path, parameters, into.is_dir())))
    port = find_free_network_port()
    first, other = (Team(rank, rank, 0, 2, 1, "127.0.0.1", port, launched=True) for rank in (0, 1))
    with first.assembled():
        following = threading.Thread(target=other.follow)
        following.start()
        first.call(Path("a.ipynb"), {"epochs": 3, "name": "1); import os"})
        first.call(Path("b.ipynb"), {"epochs": 4})
    following.join(timeout=20)
    assert not following.is_alive()
    assert seen == [
        (Path("a.ipynb"), {"epochs": 3, "name": "1); import os"}, True),
        (Path("b.ipynb"), {"epochs": 4}, True),
    ]
    assert (os.environ["HCM_DEVICES"], os.environ["HCM_NODES"], os.environ["NODE_RANK"]) == ("2", "1", "0")


TRAINING = """
import os, torch.distributed as dist
from hcm_helpers.parallel import disband
from hcm_helpers.devices import make_team
fabric = make_team()
total = fabric.all_reduce(torch.tensor(float(os.environ["LOCAL_RANK"]) + 1), reduce_op="sum").item()
disband(fabric)
with open(os.path.join(run_dir, "after"), "a") as file:
    print(total, make_team().world_size, file=file)
"""


def test_a_run_with_two_processes_trains_in_both_and_goes_on_in_one(tmp_path, monkeypatch):
    """On real kernels: they add 1 and 2, and what comes after the training is done once, alone."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(run, "STEPS", {"02_vae": "vae"})
    write_notebook(folder, "02_vae", 'run_dir = ""\nseed = 0', f"import torch\n{TRAINING}")
    monkeypatch.setattr(run, "PROFILES", {"quick": {}})
    run.run_series(devices=2, home=tmp_path, notebooks_dir=folder, only=["02"], echo=lambda line: None)
    assert (tmp_path / "runs/quick/after").read_text() == "3.0 1\n"
