"""What nearness to a training slice costs a generator: known answers on patterns that are orthogonal to each other."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from hcm_helpers import training
from hcm_helpers.acdc import DataError
from hcm_helpers.devices import make_fabric
from hcm_helpers.models.acgan import ACGAN
from hcm_helpers.models.dcgan import DCGAN
from hcm_helpers.models.gan import GAN
from hcm_helpers.models.infogan import InfoGAN
from hcm_helpers.models.layers import Batch, CopyPenalty
from hcm_helpers.parallel import take_step
from hcm_helpers.slices import Slices

SMALL = {"image_size": 32, "latent_dim": 8, "width": 8}


def patterns(n=4):
    """Orthogonal pictures (n, 1, 32, 32) of mean 0, each pixel of 16×16 twice as large."""
    flat = torch.randn(256, n, generator=torch.Generator().manual_seed(0))
    flat = torch.linalg.qr(flat - flat.mean(0)).Q.T
    return flat.reshape(n, 1, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)


def slices_of(images, patients):
    n = len(images)
    manifest = pd.DataFrame({"patient": patients, "group": "HCM", "phase": "ED", "position": 0.5, "labelled": True})
    return Slices(images, torch.full((n,), 3), torch.zeros(n, 32, 32, dtype=torch.uint8), manifest, "0" * 64)


def three():
    """Slices of which every one has r = 0.6 with the nearest of the other patient; a's two are the same."""
    first, second, *_ = patterns()
    return slices_of(torch.stack([first, first, 0.6 * first + 0.8 * second]), ["a", "a", "b"])


def test_the_excess_over_what_two_patients_have_in_common_costs():
    penalty = CopyPenalty(10.0)
    penalty.meet(three())
    assert penalty.limit.item() == pytest.approx(0.6, abs=1e-6)  # not 1, the slice's twin of the same patient
    first, second, third, _ = patterns()
    assert penalty(first[None]).item() == pytest.approx(10 * 0.4, abs=1e-5)
    assert penalty(third[None]).item() == 0
    near = 0.8 * first + 0.6 * third  # r = 0.8 with the first
    assert penalty(torch.stack([first, near, third, second])).item() == pytest.approx(
        10 * (0.4 + 0.2 + 0 + 0.2) / 4, abs=1e-5
    )


def test_nine_in_ten_slices_are_no_nearer_to_another_patient_than_the_limit():
    images = torch.randn(21, 1, 16, 16, generator=torch.manual_seed(0))
    penalty = CopyPenalty(1.0)
    penalty.meet(slices_of(images, list("abcdefghijklmnopqrstu")))
    r = np.corrcoef(images.flatten(1).numpy()) - 2 * np.eye(21)
    assert penalty.limit.item() == pytest.approx(np.sort(r.max(axis=1))[18], abs=1e-6)


def test_contrast_and_brightness_and_grain_hide_no_copy():
    penalty = CopyPenalty(1.0)
    penalty.meet(three())
    first = patterns()[:1]
    grain = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)  # finer than 16×16 shows
    for changed in (0.1 * first + 0.5, first + 0.3 * grain):
        assert penalty(changed).item() == pytest.approx(0.4, abs=1e-5)


def test_its_gradient_leads_away_from_the_slice():
    penalty = CopyPenalty(1.0)
    penalty.meet(three())
    first, _, third, _ = patterns()
    x = (0.9 * first + 0.1 * third)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(x), x)
    assert penalty(x - 0.1 * gradient / gradient.norm()) < penalty(x)
    far = third[None].clone().requires_grad_()
    assert not torch.autograd.grad(penalty(far), far)[0].any()


@pytest.mark.parametrize("model", [GAN, DCGAN, ACGAN, InfoGAN])
def test_the_generator_pays_and_the_slices_stay_out_of_every_file(model, tmp_path):
    images = torch.cat([patterns(), patterns().flip(2)]).mul(4).clamp(-1, 1)
    train = slices_of(images, list("aabbccdd"))
    losses = {}
    for weight in (0.0, 1000.0):
        torch.manual_seed(0)
        player = model(**SMALL, copy_penalty=weight)
        if weight:
            player.copy_penalty.register_forward_hook(lambda *_: torch.tensor(7.0))
        history = training.fit(player, train, train, tmp_path / str(weight), epochs=1, batch_size=8, patience=0)
        losses[weight] = history["generator"].item()
    assert losses[1000.0] == pytest.approx(losses[0.0] + 7, abs=0.02)
    assert player.copy_penalty.slices.shape == (8, 256)
    state = training.load_checkpoint(tmp_path / "1000.0")
    with safe_open(tmp_path / "1000.0" / "weights.safetensors", "pt") as file:
        names = [*file.keys(), *state["model"], *(name for average in state["averages"] for name in average)]
    assert names
    assert not [name for name in names if "copy_penalty" in name]


@pytest.mark.parametrize("model", [GAN, DCGAN, ACGAN, InfoGAN])
def test_the_price_moves_the_generator_and_not_the_discriminator(model):
    images = torch.cat([patterns(), patterns().flip(2)]).mul(4).clamp(-1, 1)
    fabric, weights = make_fabric(), {}
    for weight in (0.0, 1000.0):
        torch.manual_seed(0)
        player = model(**SMALL, copy_penalty=weight)
        player.copy_penalty.meet(slices_of(images, list("aabbccdd")))
        player.copy_penalty.limit.fill_(-1.0)  # every image costs
        take_step(player, Batch(images, torch.full((8,), 3)), player.optimizers(1e-3, (0.5, 0.999)), fabric)
        weights[weight] = {
            part: torch.cat([p.detach().flatten() for p in getattr(player, part).parameters()])
            for part in ("generator", "discriminator")
        }
    free, priced = weights.values()
    assert not torch.equal(free["generator"], priced["generator"])
    assert torch.equal(free["discriminator"], priced["discriminator"])


def test_slices_of_one_patient_set_no_limit():
    penalty = CopyPenalty(1.0)
    penalty.meet(slices_of(patterns(), ["a"] * 4))
    assert penalty(patterns()).item() == pytest.approx(0, abs=1e-6)


def test_bad_input():
    with pytest.raises(DataError, match="copy_penalty=-1: choose 0 for none"):
        CopyPenalty(-1)
    with pytest.raises(DataError, match="meet"):
        CopyPenalty(1.0)(patterns())
    assert CopyPenalty(0.0)(patterns()).item() == 0
