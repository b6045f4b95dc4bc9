"""One part of a recipe changed at a time: what is trained, how it is judged, how it is read."""

import json

import pandas as pd
import pytest
import torch
from stand_ins import write_notebook

from hcm_helpers import ablation, features, run, segmentation, slices, training
from hcm_helpers.acdc import DataError


@pytest.fixture(scope="module")
def home(small_phantom, tmp_path_factory):
    """A folder with a run "a": slices, and the networks of notebook 08 as they are before any training."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "runs" / "a"
    slices.prepare(small_phantom, folder / "slices", 32)
    kept = folder / "evaluation" / f"networks-{slices.load_slices(folder / 'slices').fingerprint[:8]}"
    torch.manual_seed(0)
    for name, network in (("encoder", features.Encoder(32)), ("segmenter", segmentation.Segmenter(32))):
        (kept / name).mkdir(parents=True)
        training.save_weights(network, kept / name)
    return home


# In the place of a training: tells what it was given.
STAND_IN = """
import json, torch
from pathlib import Path
from hcm_helpers import training
folder = Path(run_dir) / "gan"
folder.mkdir(exist_ok=True)
torch.manual_seed(seed)
training.save_samples(torch.rand(num_samples, 1, 32, 32) * 2 - 1, folder)
(folder / "history.csv").write_text("epoch,seconds\\n1,2.5\\n")
(folder / "told.json").write_text(json.dumps({name: globals()[name] for name in NAMES}))
"""


def test_each_variant_is_the_notebook_with_one_parameter_changed(home, tmp_path, monkeypatch):
    parameters = run.stored_parameters(run.NOTEBOOKS / "03_gan.ipynb")
    cell = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    write_notebook(tmp_path, "03_gan", cell, STAND_IN.replace("NAMES", repr(list(parameters))))
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path)

    told = []
    settings = {"epochs": 1, "seeds": 2, "only": ["gradient penalty"], "num_samples": 60}
    table = ablation.ablate("gan", "a", **settings, home=home, echo=told.append)
    assert list(zip(table["variant"], table["seed"], strict=True)) == [
        ("as it is", 0),
        ("gradient penalty", 0),
        ("as it is", 1),
        ("gradient penalty", 1),
    ]
    assert table["seconds_training"].tolist() == [2.5] * 4
    assert len(told) == 4
    found = {}
    for place in (home / "runs" / "a" / "ablation" / "gan").iterdir():
        found[place.name] = json.loads((place / "gan" / "told.json").read_text())
        assert found[place.name].pop("run_dir") == str(place)
        assert (place / "slices" / "slices.json").is_file()
    plain, changed, other = (found[n] for n in ("as_it_is_seed_0", "gradient_penalty_seed_0", "as_it_is_seed_1"))
    assert (plain["epochs"], plain["num_samples"]) == (1, 60)
    assert {name for name in plain if plain[name] != changed[name]} == {"gradient_penalty"}
    assert changed["gradient_penalty"] == 0.05
    assert {name for name in plain if plain[name] != other[name]} == {"seed"}
    written = pd.read_csv(home / "runs" / "a" / "ablation" / "gan.csv")
    pd.testing.assert_frame_equal(written, table, rtol=1e-4, check_dtype=False)


def test_the_judge_knows_real_slices(home):
    judge = ablation.Judge(home / "runs" / "a")
    (home / "real").mkdir()
    (home / "noise").mkdir()
    training.save_samples(judge.real.images, home / "real")
    same = judge(home / "real")
    assert same["KID"] <= 0, "the unbiased estimate of a set against itself"
    assert same["precision"] == same["recall"] == same["copies"] == 1
    noise = torch.rand(len(judge.real), 1, 32, 32) * 2 - 1
    training.save_samples(noise, home / "noise")
    assert judge(home / "noise")["KID"] > same["high"]


def test_the_judge_says_whether_walls_are_those_of_hcm(home, monkeypatch):
    normal = slices.load_slices(home / "runs" / "a" / "slices", "test", ["NOR"]).images
    drawn = pd.DataFrame({"plausible": [True] * 30 + [False] * 30, "mean_wall_mm": [12.0] * 30 + [50.0] * 30})

    def hearts(judge, images):  # 14 mm in HCM, 9 mm in NOR
        if len(images) == len(drawn):
            return drawn
        return pd.DataFrame({"plausible": True, "mean_wall_mm": [9.0 if torch.equal(images, normal) else 14.0] * 10})

    monkeypatch.setattr(ablation.Judge, "hearts", hearts)
    judge, folder = ablation.Judge(home / "runs" / "a"), home / "twelve"
    folder.mkdir()
    training.save_samples(torch.rand(len(drawn), 1, 32, 32) * 2 - 1, folder)
    judged = judge(folder)
    assert (judged["wall_to_hcm"], judged["wall_to_nor"]) == pytest.approx((2, 3))
    monkeypatch.setattr(ablation.Judge, "hearts", lambda judge, images: drawn[21:])  # nine plausible ones
    table = pd.DataFrame([{"variant": "as it is", "seed": 0} | judge(folder) | {"seconds_training": 1.0}])
    assert ablation.render(table).loc["as it is", ["wall to HCM, mm", "to NOR, mm"]].tolist() == ["–", "–"]


@pytest.mark.parametrize("model", ablation.VARIANTS)
def test_variants_change_what_the_notebook_has(model):
    step = run.find_step(model)
    bases = [run.plan(profile, run.NOTEBOOKS, 0, [step], {})[step] for profile in ("quick", "cpu")]
    for name, change in (ablation.VARIANTS[model] | {"short": ablation.SHORT.get(model, {})}).items():
        changed = {parameter: run.checked(parameter, value, bases[0][parameter]) for parameter, value in change.items()}
        assert name == "short" or any(base | changed != base for base in bases), name


def test_bad_input(home, tmp_path):
    with pytest.raises(DataError, match="unknown model 'dcgann'; the nearest is 'dcgan'"):
        ablation.ablate("dcgann", "a", home=home)
    with pytest.raises(DataError, match="nearest is 'gradient penalty'"):
        ablation.ablate("gan", "a", only=["gradient penality"], home=home)
    with pytest.raises(DataError):
        ablation.ablate("gan", "b", home=tmp_path)
    (tmp_path / "runs" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "b" / "slices").symlink_to(home / "runs" / "a" / "slices")
    with pytest.raises(DataError, match=r"networks-.* is missing; run notebooks 01 and 08 first, by `hcm run --run b`"):
        ablation.ablate("gan", "b", home=tmp_path)


def test_one_seed_shows_the_interval_several_the_range():
    table = pd.DataFrame(
        {
            "variant": ["as it is", "no augmentation"] * 2,
            "seed": [0, 0, 1, 1],
            "epochs": 5,
            "KID": [1.0, 3.0, 2.0, 4.0],
            "low": [0.9, 2.9, 1.9, 3.9],
            "high": [1.1, 3.1, 2.1, 4.1],
            "precision": 0.5,
            "recall": [0.2, 0.4, 0.4, 0.4],
            "plausible": 0.75,
            "copies": [0.01, 0.0, 0.02, 0.0],
            "seconds_training": 10.0,
        }
    )
    one = ablation.render(table[table["seed"] == 0])
    assert list(one["KID"]) == ["1.00 [0.90, 1.10]", "3.00 [2.90, 3.10]"]
    several = ablation.render(table)
    assert list(several["KID"]) == ["1.50 [1.00, 2.00]", "3.50 [3.00, 4.00]"]
    assert several.loc["as it is", ["recall", "plausible, %", "copies, %"]].tolist() == ["0.30", "75", "1.5"]


def test_a_runs_own_table_goes_before_the_measured_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "MEASURED", tmp_path / "measured")
    for folder, value in ((tmp_path / "measured", 1), (tmp_path / "run" / "ablation", 2)):
        folder.mkdir(parents=True)
        pd.DataFrame({"KID": [value]}).to_csv(folder / "gan.csv", index=False)
    assert ablation.kept_table("gan", tmp_path / "run")["KID"].item() == 2
    assert ablation.kept_table("gan", tmp_path / "other")["KID"].item() == 1
