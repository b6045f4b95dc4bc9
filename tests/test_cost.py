"""Cost: what stands in run.json, scaled to a thousand images, and a diffusion model drawn in several strides."""

import pytest
import torch
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.cost import cost_table, draw_in_steps
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.training import save_samples, write_run_json


def write_model(run, name, images=250, **changes):
    (run / name).mkdir(parents=True)
    facts = {"num_parameters": 1234, "seconds_training": 60.5, "seconds_sampling": 3.0, "parameters": {"width": 8}}
    write_run_json(run / name, **facts | changes)
    save_samples(torch.zeros(images, 1, 32, 32), run / name)


def test_costs_are_those_of_a_thousand_images(tmp_path):
    write_model(tmp_path, "diffusion", images=40, evaluations=20)
    write_model(tmp_path, "vae")
    (tmp_path / "slices").mkdir()
    table = cost_table(tmp_path).set_index("model")
    assert table.index.tolist() == ["vae", "diffusion"]
    assert table.loc["vae"].drop("device").to_dict() == {
        "parameters": 1234,
        "seconds_training": 60.5,
        "evaluations": 1000,
        "seconds_sampling": 12.0,
    }
    assert table.loc["diffusion", ["evaluations", "seconds_sampling"]].tolist() == [20000, 75.0]
    assert (table["device"] == "cpu").all() or torch.cuda.is_available()


def test_a_run_without_models_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no model"):
        cost_table(tmp_path)
    write_model(tmp_path, "gan")
    for text in ("{", "[]", '{"num_parameters": 3}'):
        (tmp_path / "gan" / "run.json").write_text(text)
        with pytest.raises(DataError, match=r"gan/run\.json is broken"):
            cost_table(tmp_path)
    (tmp_path / "gan" / "samples.npz").unlink()
    write_run_json(tmp_path / "gan", num_parameters=1, seconds_training=1, seconds_sampling=1, parameters={})
    with pytest.raises(DataError, match=r"samples\.npz is missing"):
        cost_table(tmp_path)


class Counting(nn.Module):
    """A network that says what it is given and counts the images that pass through it."""

    count = 0

    def forward(self, x, t, labels=None):
        self.count += len(x)
        return x


def test_each_number_of_steps_is_drawn_and_counted():
    model = Diffusion(32, width=8, num_steps=20, sampling_steps=5)
    model.network = Counting()
    table, images = draw_in_steps(model, [2, 10], num_images=4)
    assert table["steps"].tolist() == [2, 10]
    assert model.network.count == 5 + 4 * (2 + 10)  # one image first, in its own five steps
    assert table["evaluations"].tolist() == [2000, 10000]
    assert (table["seconds_sampling"] > 0).all()
    assert {number: tuple(drawn.shape) for number, drawn in images.items()} == dict.fromkeys((2, 10), (4, 1, 32, 32))
    assert model.sampling_steps == 5
    again = draw_in_steps(model, [10], num_images=4)[1]
    assert torch.equal(again[10], images[10])
    assert not torch.equal(images[2], images[10])


def test_time_is_scaled_from_the_images_drawn_to_a_thousand(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("hcm_helpers.cost.time.perf_counter", lambda: next(clock))
    model = Diffusion(32, width=8, num_steps=20, sampling_steps=1)
    table, _ = draw_in_steps(model, [1, 2], num_images=2)
    assert table["seconds_sampling"].tolist() == [1500.0, 250.0]


def test_more_steps_than_the_chain_has_are_refused_and_the_models_own_stay():
    model = Diffusion(32, width=8, num_steps=20, sampler="ddim", sampling_steps=5)
    with pytest.raises(DataError, match="sampling_steps=21"):
        draw_in_steps(model, [21], num_images=1)
    assert model.sampling_steps == 5
