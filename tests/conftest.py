"""What the tests share: plain progress lines, a small phantom and its slices, the real patients, a trained encoder."""

import os
from pathlib import Path

import pytest
import torch
from exports import save_model, save_slices
from hypothesis import HealthCheck, settings
from rings import ring_slices

from hcm_helpers.features import Encoder, with_targets
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import prepare
from hcm_helpers.training import fit

os.environ["HCM_HEADLESS"] = "1"
# For test_malformed.py: the same files each time, or by `--hypothesis-profile=thorough` some fifteen thousand others.
calm = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=100, derandomize=True, **calm)
settings.register_profile("thorough", max_examples=1000, **calm)
settings.load_profile("quick")

torch.set_num_threads(1)  # small tensors; the notebooks' kernels are processes of their own and take all cores


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Whatever uses real patients is marked `acdc`."""
    for item in items:
        if "acdc_root" in getattr(item, "fixturenames", ()):
            item.add_marker("acdc")


@pytest.fixture(scope="session")
def acdc_root() -> Path:
    """The real data set; the test is skipped where the environment variable HCM_ACDC names none."""
    if not os.environ.get("HCM_ACDC"):
        pytest.skip("HCM_ACDC is not set to a folder with real patients")
    return Path(os.environ["HCM_ACDC"])


@pytest.fixture(scope="session")
def small_phantom(tmp_path_factory) -> Path:
    """A phantom of 15 patients, three of each group: the fewest that give every split one of each."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "phantom", patients=15)


@pytest.fixture(scope="session")
def phantom_slices(small_phantom, tmp_path_factory):
    """Its slices at 128×128."""
    return prepare(small_phantom, tmp_path_factory.mktemp("anatomy") / "slices", image_size=128)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """An encoder trained on fifty patients of all groups."""
    torch.manual_seed(0)
    model = Encoder(32, 8)
    train, validation = with_targets(ring_slices(range(50))), with_targets(ring_slices(range(60, 70)))
    settings = {"epochs": 10, "batch_size": 16, "learning_rate": 5e-3, "betas": (0.9, 0.999), "ema_decay": 0.98}
    fit(model, train, validation, tmp_path_factory.mktemp("encoder"), **settings)
    return model


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with the run `small`: a VAE and the slices that it has learned from."""
    monkeypatch.chdir(tmp_path)
    save_model("vae")
    save_slices()
    return tmp_path
