"""Copies: a model that has learned five slices by heart is caught, real hearts that no model has seen are not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rings import ring_slices
from skimage.metrics import structural_similarity

from hcm_helpers import memorisation
from hcm_helpers.acdc import DataError
from hcm_helpers.features import Encoder
from hcm_helpers.memorisation import copies_table, copy_threshold, find_nearest, held_out_slices, nearest_by_pixels
from hcm_helpers.models.vae import VAE
from hcm_helpers.similarity import best_matches
from hcm_helpers.slices import load_slices, prepare
from hcm_helpers.training import fit, generate

TRAIN = ring_slices(range(8), ("HCM",))
HELD_OUT = ring_slices(range(100, 108), ("HCM",))
PATIENTS = HELD_OUT.manifest["patient"].to_numpy()


@pytest.fixture(scope="module")
def encoder():
    """Any features will do here: an encoder as it starts."""
    torch.manual_seed(0)
    return Encoder(32, 8)


@pytest.fixture(scope="module")
def learned_by_heart(tmp_path_factory):
    """Images of a model that has seen five slices, two hundred times each, and the five."""
    rows = list(range(0, 80, 16))
    few = replace(TRAIN, images=TRAIN.images[rows], labels=TRAIN.labels[rows], masks=TRAIN.masks[rows])
    few.manifest = TRAIN.manifest.iloc[rows].reset_index(drop=True)
    torch.manual_seed(0)
    model = VAE(32, 8, 8, augment=False, prior_components=5)
    settings = {"epochs": 200, "batch_size": 5, "learning_rate": 3e-3, "validate_every": 200}
    fit(model, few, few, tmp_path_factory.mktemp("vae"), **settings)
    model.fit_prior(few.images)
    return generate(model, 100), few


def test_a_model_that_has_learned_by_heart_is_caught(learned_by_heart, encoder):
    images, few = learned_by_heart
    found = {"vae": find_nearest(images, few, encoder)}
    table = copies_table(found, find_nearest(HELD_OUT.images, TRAIN, encoder), PATIENTS).set_index("model")
    assert table.loc["vae", "copies"] > 0.9
    assert table.loc["vae", "num_patients"] == 5
    assert table.loc["vae", "patients"] == " ".join(sorted(few.manifest["patient"]))
    assert table.loc["vae", "low"] > 0.8


def test_real_hearts_are_mostly_no_copies(encoder):
    table = copies_table({}, find_nearest(HELD_OUT.images, TRAIN, encoder), PATIENTS)
    (row,) = table.itertuples()
    assert row.n == 80
    assert row.copies < 0.1
    others = ring_slices(range(200, 220), ("HCM",))  # and neither are those of more patients
    nearness, _ = nearest_by_pixels(others.images, TRAIN)
    assert (nearness > row.threshold).mean() < 0.05


def test_the_threshold_is_the_highest_of_real_hearts_and_each_patient_is_judged_by_the_others():
    correlations = np.repeat([0.5, 0.6, 0.71234], 10)
    assert copy_threshold(correlations) == 0.7124
    real = pd.DataFrame({"cc": correlations, "ssim": 0.2, "distance": 1.0, "patient": "patient001"})
    drawn = pd.DataFrame({"cc": [0.9, 0.8, 0.1, 0.7124], "ssim": 0.4, "distance": 2.0, "patient": list("baab")})
    table = copies_table({"gan": drawn}, real, np.repeat(["x", "y", "z"], 10)).set_index("model")
    assert table.loc["gan", "copies"] == 0.5
    assert table.loc["gan", "patients"] == "a b"
    assert table.loc["gan", "cc_max"] == 0.9
    assert table.loc["gan", "threshold"] == 0.7124
    assert table.loc[memorisation.HELD_OUT, "copies"] == pytest.approx(1 / 3), "the slices of z, beyond x and y"


def test_blur_alone_makes_unseen_hearts_pass_for_copies(encoder):
    grain = torch.randn(HELD_OUT.images.shape, generator=torch.Generator().manual_seed(0))
    grainy = replace(HELD_OUT, images=(HELD_OUT.images + 0.5 * grain).clamp(-1, 1))
    table = memorisation.copies_when_blurred(grainy, TRAIN, sigmas=(0, 1))
    as_it_is = copies_table({}, find_nearest(grainy.images, TRAIN, encoder), PATIENTS)
    assert table["copies"][0] == as_it_is["copies"][0]
    assert table["cc"][0] == pytest.approx(as_it_is["cc"][0])
    assert table["copies"][1] > table["copies"][0] + 0.2
    assert table["low"][1] <= table["copies"][1] <= table["high"][1]


def test_one_unseen_patient_cannot_be_judged_by_others():
    one = replace(HELD_OUT, manifest=HELD_OUT.manifest.assign(patient="patient099"))
    with pytest.raises(DataError, match="held-out slices of one patient cannot be judged"):
        memorisation.copies_when_blurred(one, TRAIN)


def test_the_nearest_is_found_by_each_measure():
    generator = torch.Generator().manual_seed(0)
    train = TRAIN.images
    images = torch.stack([train[7] * 0.5 + 0.2, train[40]])  # the first of less contrast: CC 1, SSIM below
    images = images + 0.01 * torch.randn(images.shape, generator=generator)
    extractor = Encoder(32, 8)
    found = find_nearest(images.clamp(-1, 1), TRAIN, extractor)
    assert found["cc_row"].tolist() == [7, 40]
    assert found["cc"].min() > 0.99
    assert found["patient"].tolist() == ["patient000", "patient004"]
    expected = [
        structural_similarity((images[1, 0].numpy() + 1) / 2, (y[0].numpy() + 1) / 2, data_range=1.0, **GAUSSIAN)
        for y in train
    ]
    assert found["ssim"][1] == pytest.approx(max(expected), abs=1e-4)
    assert found["ssim_row"][1] == np.argmax(expected)
    known = best_matches((images.clamp(-1, 1) + 1) / 2, (train + 1) / 2)
    pd.testing.assert_frame_equal(find_nearest(images.clamp(-1, 1), TRAIN, extractor, known), found)
    with torch.no_grad():
        features = extractor.eval()(torch.cat([images.clamp(-1, 1), train]))
    distances = np.linalg.norm(features[:1].numpy() - features[2:].numpy(), axis=1)
    assert found["distance"][0] == pytest.approx(distances.min(), rel=1e-4)
    assert found["distance_row"][0] == distances.argmin()


GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def test_closest_pairs_come_first():
    found = pd.DataFrame({"cc": [0.1, 0.9, 0.5]})
    assert memorisation.closest_pairs(found, 2).index.tolist() == [1, 2]


def test_held_out_slices_are_those_of_validation_and_test(small_phantom, tmp_path):
    prepare(small_phantom, tmp_path / "slices", 32)
    held_out = held_out_slices(tmp_path / "slices", ("HCM", "NOR"))
    parts = [load_slices(tmp_path / "slices", split, ("HCM", "NOR")) for split in ("validation", "test")]
    assert torch.equal(held_out.images, torch.cat([part.images for part in parts]))
    assert torch.equal(held_out.labels, torch.cat([part.labels for part in parts]))
    assert held_out.manifest["patient"].tolist() == [p for part in parts for p in part.manifest["patient"]]
    assert not set(held_out.manifest["patient"]) & set(load_slices(tmp_path / "slices", "train").manifest["patient"])


def test_bad_input_is_named(encoder):
    with pytest.raises(DataError, match="images have shape"):
        nearest_by_pixels(torch.zeros(2, 1, 64, 64), TRAIN)
    with pytest.raises(DataError, match="images have shape"):
        nearest_by_pixels(torch.zeros(0, 1, 32, 32), TRAIN)
    with pytest.raises(DataError, match="NaN"):
        find_nearest(torch.full((2, 1, 32, 32), float("nan")), TRAIN, encoder)
    with pytest.raises(DataError, match="not in"):
        find_nearest(torch.full((2, 1, 32, 32), 2.0), TRAIN, encoder)
    with pytest.raises(DataError, match="18 held-out slices are too few"):
        copy_threshold(np.zeros(18))
    real = pd.DataFrame({"cc": np.zeros(20)})
    with pytest.raises(DataError, match="one patient"):
        copies_table({}, real, np.repeat("x", 20))


def test_the_threshold_of_real_patients(acdc_root, tmp_path):
    prepare(acdc_root, tmp_path / "slices", 64)
    train, held_out = (
        load_slices(tmp_path / "slices", "train", ("HCM",)),
        held_out_slices(tmp_path / "slices", ("HCM",)),
    )
    nearness, _ = nearest_by_pixels(held_out.images, train)
    assert nearness.mean() == pytest.approx(0.53, abs=0.05)  # as measured before this code was there
    assert copy_threshold(nearness) == pytest.approx(0.705, abs=0.03)
