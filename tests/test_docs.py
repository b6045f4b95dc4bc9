"""The documentation's own code, and that it leaves no module out; `make docs` builds the rest."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_is_described_once():
    described = [
        name
        for page in (ROOT / "docs" / "api").glob("*.rst")
        for name in re.findall(r"automodule:: (\S+)", page.read_text(encoding="utf-8"))
    ]
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "hcm_helpers").rglob("*.py"))
    assert sorted(described) == sorted(".".join(path.parts) for path in paths if path.name != "__init__")


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        (".", "[a](notebooks/02_vae.ipynb)", "[a](notebooks/02_vae.ipynb)"),
        (".", "![a b](docs/phantom.png)", "![a b](phantom.png)"),
        (".", "[a](docs/results.md#on-a-gpu)", "[a](results.md#on-a-gpu)"),
        ("data", "[a](../README.md)", "[a](index.md)"),
        ("docs", "[a](../README.md#results)", "[a](reproduce.md#results)"),
        ("docs", "[a](results.md)", "[a](results.md)"),
        (".", "[a](CITATION.cff) and [b](docs/ablation)", "a and b"),
        (".", "[a](https://doi.org/1) [b](#limits)", "[a](https://doi.org/1) [b](#limits)"),
    ],
)
def test_links_lead_to_the_page_of_the_site(conf, folder, text, expected):
    assert conf.relinked(text, Path(folder)) == expected


def test_equations_are_mathml_with_their_numbers(conf):
    drawn = conf.mathml(r"x^2 \tag{7}", "block")
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in drawn
    assert "<mtext>(7)</mtext>" in drawn
    assert "&#x1D53C;" in conf.mathml(r"\mathbb E\, x", "inline")  # 𝔼
    assert "ema_decay" in conf.mathml(r"\texttt{ema\_decay}", "inline")
