"""A run that was cut off and goes on: what it keeps, what it does again, and that nobody else is at it."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from stand_ins import write_notebook

from hcm_helpers import cli, resume, run
from hcm_helpers.acdc import DataError
from hcm_helpers.training import load_checkpoint

COMMON = 'run_dir = "../runs/quick"\nseed = 0\n'
TRAIN = COMMON + "epochs = 2\nresume = False"
# Each notebook counts in a file how often it has run, and whether it was told to go on.
COUNT = """
from pathlib import Path
place = Path(run_dir) / "{name}.txt"
place.write_text((place.read_text() if place.exists() else "") + "{what}")
"""


@pytest.fixture
def hcm(tmp_path, monkeypatch):
    """Calls `hcm run` on stand-in notebooks, and tells what each has done."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, model in run.STEPS.items():
        cell = COUNT.format(name=name, what="x").replace('"x"', "str(int(resume))" if model else '"x"')
        write_notebook(folder, name, TRAIN if model else COMMON, cell)
    prepare = COMMON + 'data_dir = ""\nimage_size = 32\nphantom_patients = 5'
    write_notebook(folder, "01_data_preparation", prepare, COUNT.format(name="01_data_preparation", what="x"))
    monkeypatch.setitem(run.run_series.__kwdefaults__, "notebooks_dir", folder)
    monkeypatch.setattr(run, "PROFILES", {"quick": {}})

    def call(*arguments: str):
        return CliRunner().invoke(cli.cli, ["run", "--jobs", "1", *arguments])

    return call


def done(tmp_path) -> dict[str, str]:
    return {path.stem[:2]: path.read_text() for path in sorted((tmp_path / "runs/quick").glob("*.txt"))}


def cut_off(tmp_path, notebook: str) -> None:
    """Let run.json say what it says when the process was killed in this notebook."""
    path = tmp_path / "runs/quick/run.json"
    record = json.loads(path.read_text())
    record["notebooks"][notebook]["state"] = "running"
    for later in [name for name in record["notebooks"] if name > notebook]:
        del record["notebooks"][later]
    path.write_text(json.dumps(record))


def test_what_is_done_is_kept_and_what_was_cut_off_goes_on(hcm, tmp_path):
    assert hcm("--set", "vae.epochs=3", "--only", "1,2,3,8").exit_code == 0
    cut_off(tmp_path, "03_gan")
    result = hcm("--resume", "--only", "1,2,3,8")
    assert result.exit_code == 0, result.output
    assert "03_gan              was cut off" in result.output
    assert "08_evaluation       has not been run" in result.output
    assert done(tmp_path) == {"01": "x", "02": "0", "03": "01", "08": "xx"}
    record = json.loads((tmp_path / "runs/quick/run.json").read_text())
    assert record["notebooks"]["02_vae"]["parameters"]["epochs"] == 3  # --set of the first call still holds
    again = hcm("--resume", "--only", "1,2,3,8")
    assert again.exit_code == 0
    assert done(tmp_path) == {"01": "x", "02": "0", "03": "01", "08": "xx"}


def test_other_parameters_are_told_and_what_follows_runs_again(hcm, tmp_path):
    hcm("--only", "1,2,3,8")
    result = hcm("--resume", "--only", "1,2,3,8", "--set", "gan.epochs=5")
    assert "epochs is 5, was 2" in result.output
    assert "03_gan runs again" in result.output
    assert done(tmp_path) == {"01": "x", "02": "0", "03": "00", "08": "xx"}


def test_a_part_of_the_series_run_again_keeps_what_was_set_for_the_others(hcm, tmp_path):
    assert hcm("--set", "dcgan.epochs=5", "--set", "vae.epochs=7").exit_code == 0
    assert hcm("--only", "08").exit_code == 0
    assert hcm("--only", "vae", "--set", "vae.epochs=9").exit_code == 0
    settings = json.loads((tmp_path / "runs/quick/run.json").read_text())["settings"]
    assert settings == {"04_dcgan": {"epochs": 5}, "02_vae": {"epochs": 9}}
    before = done(tmp_path)
    assert hcm("--resume").exit_code == 0
    assert done(tmp_path) == before, "nothing is trained anew with other epochs"


def test_other_data_or_code_are_told(hcm, tmp_path):
    hcm("--only", "1,2")
    voxels = next((tmp_path / "data/phantom").rglob("*.nii.gz"))
    os.utime(voxels, ns=(0, 0))
    assert "other data than before" in hcm("--resume", "--only", "1,2").output
    assert done(tmp_path) == {"01": "xx", "02": "00"}
    write_notebook(tmp_path / "notebooks", "02_vae", TRAIN, COUNT.format(name="02_vae", what="new"))
    assert "02_vae              other code than before" in hcm("--resume", "--only", "1,2").output
    assert done(tmp_path) == {"01": "xx", "02": "00new"}


def test_there_must_be_something_to_resume(hcm, tmp_path):
    result = hcm("--resume", "--run", "nothing")
    assert result.exit_code == 2
    assert "there is no run to go on with" in result.output
    assert not (tmp_path / "runs").exists()


HOLD = """
import sys, time
from pathlib import Path
from hcm_helpers.resume import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_belongs_to_one_process_until_it_ends_however_it_does(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataError, match="a is being run by another process: wait"), resume.alone(tmp_path / "a"):
        pass
    owner = {"pid": holder.pid, "host": "here"}
    (tmp_path / "a" / "run.json").write_text(json.dumps({"process": owner}))
    said = f"a is being run by process {holder.pid} on here"
    with pytest.raises(DataError, match=said), resume.alone(tmp_path / "a"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with resume.alone(tmp_path / "a"):
        pass


def train(folder, go_on: bool) -> None:
    """A short training with all that a state has: two optimizers, two averages, dropout, noise, snapshots, samples."""
    import torch
    from test_training import slices

    from hcm_helpers.models.diffusion import Diffusion
    from hcm_helpers.training import fit, generate, save_samples

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Diffusion(32, width=8, dropout=0.2, augment=0.5, num_classes=5, sampling_steps=3)
    settings = {"epochs": 24, "batch_size": 8, "patience": 0, "validate_every": 2, "cooldown": 0.5, "seed": 1}
    averages = {"ema_decay": [0.5, 0.9], "num_snapshots": 4, "checkpoint_seconds": 0.0}
    fit(model, slices(48), slices(16), folder, resume=go_on, **settings, **averages)
    save_samples(generate(model, 4, seed=2), folder)


def test_twenty_kills_leave_no_trace(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["hcm_helpers.training", "hcm_helpers.models.diffusion", "test_training"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = processes.Process(target=train, args=(whole, False))
    undisturbed.start()
    undisturbed.join()
    dice, last, taken = random.Random(0), killed / "checkpoint" / "last.safetensors", []
    for _ in range(20):
        before = last.stat().st_mtime_ns if last.exists() else None
        process = processes.Process(target=train, args=(killed, True))
        process.start()
        while process.is_alive() and (last.stat().st_mtime_ns if last.exists() else None) == before:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.1))  # in a step, in a validation or while a file is written
        process.kill()
        process.join()
        taken.append(load_checkpoint(killed)["steps"])
    assert taken == sorted(taken)
    assert taken[-1] < 144, "the training was over before the twentieth kill"
    process = processes.Process(target=train, args=(killed, True))
    process.start()
    process.join()
    assert process.exitcode == 0
    for name in ("weights.safetensors", "snapshots.npz", "samples.npz"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    ours, theirs = (
        [line.split(",")[:1] + line.split(",")[2:] for line in (place / "history.csv").read_text().splitlines()]
        for place in (killed, whole)
    )
    assert ours == theirs
