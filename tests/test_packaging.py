"""pyproject.toml, environment.yml, constraints.txt and the rest of the set-up say the same thing."""

import os
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from hcm_helpers import files

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
PINS = {canonicalize_name(pin.name): pin.specifier for pin in CONSTRAINTS}
DEPENDENCIES = [
    Requirement(text)
    for group in (
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    )
    for text in group
    if not text.startswith("hcm-helpers[")  # one extra within another
]


def floor(specifiers: str) -> str:
    """ ">=3.11,<3.15" → "3.11"."""
    (lowest,) = [specifier.version for specifier in SpecifierSet(specifiers) if specifier.operator == ">="]
    return lowest


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_same_python_everywhere():
    python = floor(PROJECT["project"]["requires-python"])
    make = re.search(r"\((\d+), (\d+)\) <= sys.version_info < \((\d+), (\d+)\)", (ROOT / "Makefile").read_text())
    (conda,) = [entry for entry in environment()["dependencies"] if str(entry).startswith("python")]
    assert floor(conda.removeprefix("python")) == python
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + python.replace(".", "")
    assert conda == "python>={}.{},<{}.{}".format(*make.groups())


def test_conda_installs_what_make_installs():
    dependencies = environment()["dependencies"]
    assert "pip" in dependencies
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert '-c constraints.txt -e ".[dev]"' in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=lambda dependency: dependency.name)
def test_dependency_is_pinned_within_its_range(dependency):
    (pin,) = PINS[canonicalize_name(dependency.name)]
    assert dependency.specifier, "every dependency has a lowest version"
    assert dependency.specifier.contains(pin.version, prereleases=True)


def test_pins_are_exact_and_hold_on_any_machine():
    assert len(PINS) == len(CONSTRAINTS), "one line a package"
    for pin in CONSTRAINTS:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin}: ==version, without +cpu or the like"


def test_pins_admit_the_lowest_python():
    lowest = floor(PROJECT["project"]["requires-python"]) + ".0"
    extras = PROJECT["project"]["optional-dependencies"]
    elsewhere = {canonicalize_name(Requirement(line).name) for line in extras["bench"] + extras["cluster"]}
    for name in PINS.keys() - elsewhere:  # what only benchmarks and clusters need is not installed everywhere
        python = metadata.metadata(name)["Requires-Python"]
        assert lowest in SpecifierSet(python or ""), f"{name} needs Python {python}; pin an earlier version of it"


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()


def test_version_and_licence_are_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    newest = re.search(r"^## (\S+) · (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_a_wheel_has_all_packages_and_what_lies_beside_them():
    tool = PROJECT["tool"]["setuptools"]
    folders = {name: ROOT / tool["package-dir"].get(name, name.replace(".", "/")) for name in tool["packages"]}
    packages = {path.parent for path in (ROOT / "hcm_helpers").rglob("__init__.py")}
    assert packages <= set(folders.values())
    for name, patterns in tool["package-data"].items():
        assert any(next(folders[name].glob(pattern), None) for pattern in patterns), name


@pytest.mark.parametrize(("here", "expected"), [("clone", "docs/ablation"), ("wheel", "hcm_helpers/ablation_tables")])
def test_files_are_found_in_a_clone_and_in_a_wheel(tmp_path, monkeypatch, here, expected):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "hcm_helpers" / "files.py"))
    if here == "clone":
        (tmp_path / "pyproject.toml").touch()
    assert files.clone_or_wheel("docs/ablation", "ablation_tables") == tmp_path.resolve() / expected
