"""A batch in shares, in turn or over processes, gives what it gives in one piece."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.models.acgan import ACGAN
from hcm_helpers.models.dcgan import DCGAN
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.models.gan import GAN
from hcm_helpers.models.infogan import InfoGAN
from hcm_helpers.models.layers import Batch
from hcm_helpers.models.vae import VAE
from hcm_helpers.parallel import Share, own_rows, take_step
from hcm_helpers.slices import Slices
from hcm_helpers.training import fit

FABRIC = Fabric(accelerator="cpu", devices=1, precision="32-true")  # bf16 has two digits, too few to compare
PENALTY = {"gradient_penalty": 0.05}
MODELS = {
    "vae": lambda: VAE(32, latent_dim=8, width=8),
    "gan": lambda: GAN(32, latent_dim=8, width=16, **PENALTY),
    "dcgan": lambda: DCGAN(32, latent_dim=8, width=8, **PENALTY),
    "acgan": lambda: ACGAN(32, latent_dim=8, width=8),
    "infogan": lambda: InfoGAN(32, latent_dim=8, width=8),
    "diffusion": lambda: Diffusion(32, 8, dropout=0.3, augment=0.5, num_classes=5),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]().to(memory_format=torch.channels_last)


def slices(n: int, seed: int = 0) -> Slices:
    images = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    masks = torch.zeros(n, 32, 32, dtype=torch.uint8)
    return Slices(images, torch.arange(n) % 5, masks, pd.DataFrame({"patient": range(n)}), "0" * 64)


def losses(name: str, steps: int, num_parts: int = 1, fabric: Fabric = FABRIC) -> list[dict[str, float]]:
    """Of so many steps in batches of 12."""
    model, data = build(name), slices(48)
    # A game of two convolutional players is chaotic: at the usual rate rounding grows tenfold in ten steps, in one
    # process as well.
    optimizers = model.optimizers(2e-5 if name in ("dcgan", "acgan", "infogan") else 2e-4, (0.5, 0.999))
    torch.manual_seed(5)
    noted = []
    for _ in range(steps):
        rows = torch.randperm(48)[:12][own_rows(12, fabric)[0]]
        batch = Batch(data.images[rows].contiguous(memory_format=torch.channels_last), data.labels[rows])
        noted.append(
            {key: loss.item() for key, loss in take_step(model, batch, optimizers, fabric, num_parts, 12).items()}
        )
    return noted


@pytest.mark.parametrize("num_parts", [2, 5, 12])
@pytest.mark.parametrize("name", ["vae", "diffusion"])
def test_parts_in_turn_give_the_losses_of_one_piece(name, num_parts):
    whole, parts = losses(name, 8), losses(name, 8, num_parts)
    pd.testing.assert_frame_equal(pd.DataFrame(parts), pd.DataFrame(whole), rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_computes_in_the_precision_of_its_fabric_and_keeps_the_weights_in_float32(name, monkeypatch):
    """As Fabric's own wrapper did not, around a method other than forward, on one device."""
    model, seen = build(name), set()
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    data, fabric = slices(12), Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    losses = take_step(model, Batch(data.images, data.labels), model.optimizers(2e-4, (0.5, 0.999)), fabric)
    assert torch.bfloat16 in seen
    assert {p.dtype for p in model.parameters()} == {loss.dtype for loss in losses.values()} == {torch.float32}


def test_in_parts_of_other_noise_the_losses_would_differ(monkeypatch):
    """The comparison above can fail."""
    monkeypatch.setattr(
        Share, "__torch_function__", lambda self, f, types, args=(), kwargs=None: f(*args, **kwargs or {})
    )
    whole, parts = losses("diffusion", 2), losses("diffusion", 2, 2)
    assert abs(whole[0]["loss"] - parts[0]["loss"]) > 1e-2


class Noting(GAN):
    """Notes the first pixel of each image that it is shown, by which it can be told."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(32, latent_dim=8, width=16)
        self.seen: list[float] = []

    def train_step(self, batch):
        self.seen += batch.images[:, 0, 0, 0].tolist()
        return super().train_step(batch)


@pytest.fixture(scope="module", params=[2, 4])
def together(request, tmp_path_factory):
    """What so many processes have noted, and the folder of their training."""
    folder = tmp_path_factory.mktemp("together")
    place = {
        "HCM_DEVICES": str(request.param),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
    }
    ranks = Path(__file__).with_name("ranks.py")
    processes = [
        subprocess.Popen([sys.executable, ranks, folder], env=os.environ | place | {"LOCAL_RANK": str(rank)})
        for rank in range(request.param)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * request.param
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)], folder / "fit"


@pytest.mark.parametrize("name", MODELS)
def test_several_processes_have_the_losses_of_one(name, together):
    if name not in together[0][0]["losses"]:
        pytest.skip("two processes have shown it")
    alone = pd.DataFrame(losses(name, 50))
    for notes in together[0]:
        pd.testing.assert_frame_equal(pd.DataFrame(notes["losses"][name]), alone, rtol=1e-4, atol=1e-4)


def test_each_image_is_seen_once_an_epoch(together):
    for epoch in range(3):
        shares = [notes["seen"][len(notes["seen"]) // 3 * epoch :][: len(notes["seen"]) // 3] for notes in together[0]]
        assert len({len(share) for share in shares}) == 1, "equal shares"
        assert sorted(value for share in shares for value in share) == sorted(slices(48).images[:, 0, 0, 0].tolist())


def test_the_first_process_writes_and_the_others_end(together, tmp_path, monkeypatch):
    first, *others = together[0]
    assert {"weights.safetensors", "history.csv", "snapshots.npz", "last.safetensors"} <= set(first["written"])
    assert all(notes["written"] == [] and notes["done"] for notes in others)
    assert "done" not in first

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    alone = fit(Noting(), slices(48), slices(21, seed=1), tmp_path, epochs=3, batch_size=12, num_snapshots=1)
    written = pd.read_csv(together[1] / "history.csv")
    pd.testing.assert_frame_equal(written.drop(columns="seconds"), alone.drop(columns="seconds"), rtol=1e-3)


def test_a_training_of_several_processes_is_resumed_by_one(together, tmp_path, monkeypatch):
    """The checkpoint does not depend on how many there are."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    shutil.copytree(together[1], tmp_path / "fit")
    settings = {"epochs": 6, "batch_size": 12, "num_snapshots": 1}
    resumed = fit(Noting(), slices(48), slices(21, seed=1), tmp_path / "fit", resume=True, **settings)
    whole = fit(Noting(), slices(48), slices(21, seed=1), tmp_path / "whole", **settings)
    assert len(resumed) == 6
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), rtol=1e-3)


# Out of memory.


class Hungry(Diffusion):
    """Has memory for so many images at a time, from its third step on."""

    def __init__(self, room: int):
        torch.manual_seed(3)
        super().__init__(32, 8, dropout=0.3, augment=0.5)
        self.room, self.steps, self.sizes = room, 0, []

    def loss(self, batch, *arguments, **named):
        self.steps += 1
        if self.steps > 2 and len(batch.images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.sizes.append(len(batch.images))
        return super().loss(batch, *arguments, **named)


def test_out_of_memory_halves_the_batch_and_ends_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    settings = {"epochs": 3, "batch_size": 12, "patience": 0}
    rich = fit(Hungry(256), slices(48), slices(21, seed=1), tmp_path / "rich", **settings)
    poor_model = Hungry(3)
    poor = fit(poor_model, slices(48), slices(21, seed=1), tmp_path / "poor", **settings)
    pd.testing.assert_frame_equal(poor.drop(columns="seconds"), rich.drop(columns="seconds"), rtol=1e-4)
    assert poor_model.sizes[:2] == [12, 12]
    assert max(poor_model.sizes[2:]) == 3, "twice halved"
    lines = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert lines == [f"Hungry: out of memory; a batch is taken in {n} parts from here on" for n in (2, 4)]


def test_memory_for_not_even_one_image_is_told(tmp_path):
    with pytest.raises(DataError, match=r"Hungry: the memory of cpu is too small for one image; .*width or image_size"):
        fit(Hungry(0), slices(48), slices(21, seed=1), tmp_path, epochs=3, batch_size=12)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Noting, "train_step", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(Noting(), slices(48), slices(21, seed=1), tmp_path, epochs=3, batch_size=12)


# Shares.


@pytest.mark.parametrize(("size", "processes", "parts"), [(12, 1, 1), (12, 4, 1), (13, 4, 2), (7, 2, 9), (5, 5, 1)])
def test_shares_cover_a_batch_once(size, processes, parts):
    rows = []
    for rank in range(processes):
        fabric = SimpleNamespace(world_size=processes, global_rank=rank)
        shares = own_rows(size, fabric, parts)
        assert len(shares) <= parts
        assert all(share.stop > share.start for share in shares), "none is empty"
        rows += [row for share in shares for row in range(size)[share]]
    assert rows == list(range(size))


def test_a_batch_smaller_than_the_team_is_refused():
    with pytest.raises(DataError, match=r"batch_size=3: 4 processes share it, so choose 4 or more"):
        own_rows(3, SimpleNamespace(world_size=4, global_rank=0))


def test_dropout_of_a_share_is_its_rows_of_the_batch_in_either_layout():
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.rand(6, 8, 4, 4).contiguous(memory_format=layout)
        torch.manual_seed(0)
        whole = F.dropout(x, 0.5)
        torch.manual_seed(0)
        with Share(slice(2, 5), 6):
            part = F.dropout(x[2:5], 0.5)
        assert torch.equal(part, whole[2:5])
        assert 0.2 < (part == 0).float().mean() < 0.8
