"""What the tests share: plain progress lines, a small phantom, the real patients."""

import os
from pathlib import Path

import pytest
import torch

from hcm_helpers.phantom import write_phantom

os.environ["HCM_HEADLESS"] = "1"
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
