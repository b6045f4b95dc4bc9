"""examples/: a model that is none of the series', by known answers, and through the notebooks like one of them."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from flow import Flow
from rings import ring_slices
from test_notebooks import TINY
from torch import nn

from hcm_helpers import export, run, scorecard, training
from hcm_helpers.devices import make_fabric
from hcm_helpers.models.layers import Batch
from hcm_helpers.parallel import take_step
from hcm_helpers.phantom import write_phantom

EXAMPLES = Path(__file__).parent.parent / "examples"


class Exact(nn.Module):
    """The mean velocity where each pixel of the images is normal, N(m, s²): x_t and x_1 − x_0 are then jointly so."""

    def __init__(self, m: float, s: float):
        super().__init__()
        self.m, self.s = m, s

    def forward(self, x, noise):
        t, m, s = (noise / 1000)[:, None, None, None], self.m, self.s
        return m + (t * s**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s**2) * (x - t * m)


def exact_flow(m, s, sampling_steps=10):
    model = Flow(32, 8, sampling_steps=sampling_steps)
    model.network = Exact(m, s)
    return model


@pytest.mark.parametrize(("m", "s"), [(0.2, 0.5), (-0.3, 1.0)])
def test_the_loss_of_the_exact_velocity_is_the_lowest_there_is(m, s):
    model, draw = exact_flow(m, s), torch.Generator().manual_seed(0)
    x_1 = m + s * torch.randn(100_000, 1, 1, 1, generator=draw)
    assert model.loss(x_1, draw).item() == pytest.approx(math.pi / 2 * s, rel=0.02)
    model.network.s = 1.5 * s  # any other velocity loses more
    assert model.loss(x_1, draw).item() > 1.04 * math.pi / 2 * s


def test_the_exact_velocity_carries_noise_to_the_normal_distribution():
    model = exact_flow(m=0.2, s=0.5, sampling_steps=200)
    x_0 = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.follow(x_0), 0.2 + 0.5 * x_0, atol=1e-4)


class Growing(nn.Module):
    def forward(self, x, noise):
        return 2 * noise[0] / 1000 * x  # dx/dt = 2 t x


def test_half_the_stride_a_quarter_of_the_error():
    errors = []
    for steps in (20, 40):
        model = Flow(32, 8, sampling_steps=steps)
        model.network = Growing()
        errors.append(math.e - model.follow(torch.ones(1, 1, 1, 1)).item())  # x = exp t²
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_a_taught_picture_comes_back(tmp_path):
    """Images are one picture with a little noise on it; so are the samples of a model that has learned them."""
    picture = ring_slices([3]).images[:1]
    rings = ring_slices(range(4))
    noise = torch.Generator().manual_seed(0)
    rings.images = (0.8 * picture + 0.1 * torch.randn(rings.images.shape, generator=noise)).clamp(-1, 1)
    torch.manual_seed(0)
    model = Flow(32, 8, dropout=0.0)
    settings = {"epochs": 150, "batch_size": 20, "learning_rate": 1e-2, "ema_decay": 0.9, "validate_every": 150}
    history = training.fit(model, rings, rings, tmp_path, betas=(0.9, 0.999), cooldown=0.5, **settings)
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    images = training.generate(model, 16, seed=1)
    assert images.shape == (16, 1, 32, 32)
    assert images.abs().max() <= 1
    assert (images.mean(0) - 0.8 * picture[0]).abs().mean() < 0.15  # of noise alone it would be 0.4
    assert torch.equal(images, training.generate(model, 16, seed=1))
    assert not torch.equal(images, training.generate(model, 16, seed=2))


def test_a_batch_in_parts_has_the_loss_of_the_whole():
    batch = Batch(ring_slices([3]).images, torch.full((10,), 3))
    found = []
    for num_parts in (1, 3):
        torch.manual_seed(0)
        model = Flow(32, 8, dropout=0.0)
        torch.manual_seed(1)
        found.append(take_step(model, batch, model.optimizers(1e-3, (0.9, 0.999)), make_fabric(), num_parts)["loss"])
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-2)  # bf16, where the processor has it


@pytest.fixture
def in_the_series(monkeypatch):
    """The lines by which docs/add_a_model.md makes it a step of `hcm run`, between 07 and 08, and lets it be built."""
    steps = dict(run.STEPS)
    run.STEPS.clear()  # in place, as others hold it, too
    for notebook, model in steps.items():
        if notebook == "08_evaluation":
            run.STEPS["11_flow"] = "flow"
        run.STEPS[notebook] = model
    monkeypatch.setitem(export.NETWORKS, "flow", Flow)
    yield
    run.STEPS.clear()
    run.STEPS.update(steps)


def test_it_runs_in_the_series_and_is_measured_and_drawn_from(tmp_path, in_the_series):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for path in (*run.NOTEBOOKS.glob("*.ipynb"), *EXAMPLES.iterdir()):
        if path.is_file():
            shutil.copy(path, notebooks)
    patients = write_phantom(tmp_path / "phantom", patients=30)
    tiny = {"flow": {"epochs": 1, "batch_size": 8, "num_samples": 60, "sampling_steps": 2, "width": 8}}
    tiny |= {"evaluation": TINY["evaluation"]}
    chosen = {"only": ["01", "flow", "08"], "overrides": tiny, "home": tmp_path, "notebooks_dir": notebooks}
    folder = run.run_series("quick", patients, **chosen)
    states = json.loads((folder / "run.json").read_text())["notebooks"]
    assert {name: notebook["state"] for name, notebook in states.items()} == dict.fromkeys(states, "done")
    assert "11_flow" in states
    assert "flow" in set(pd.read_csv(folder / "evaluation" / "table1.csv")["model"])
    card = scorecard.scorecard(folder)
    assert list(card.index) == [scorecard.REAL, "flow"]
    assert card.loc["flow", ["SSIM", "KID", "copies, %", "time, s"]].notna().all()
    cost = pd.read_csv(folder / "evaluation" / "cost.csv").set_index("model")
    assert cost.loc["flow", "evaluations"] == 1000 * 2 * 2
    export.sample(folder, "flow", 3, tmp_path / "out", echo=lambda line: None)
    assert len(list((tmp_path / "out").glob("flow_*.png"))) == 3
