"""`hcm sample`: what it writes, read back by other libraries; what it continues, refuses and never deletes."""

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from exports import PARAMETERS, content, exported, floats, hcm, refusal, save_model, unfinished
from skimage.io import imread

from hcm_helpers import cli, export, training
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.models.vae import VAE

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize("model", PARAMETERS)
def test_every_model_is_rebuilt_from_its_run(model):
    folder = save_model(model)
    network, _ = export.load_model(folder, model)
    images, labels = floats(exported(model, 3, "out", "--format", "npz"), 3)
    settings = {"seed": 0, "group": "HCM"}
    assert np.array_equal(images, export.draw(network, settings, 0)[0][:3].numpy())
    assert np.abs(images).max() <= 1
    assert np.ptp(images, axis=0).max() > 1e-3, "no two images are the same"
    assert labels.tolist() == [GROUPS.index("HCM")] * 3


def test_png_is_sixteen_bit_grey():
    images, _ = floats(exported("vae", 3, "npz", "--format", "npz"), 3)
    folder = exported("vae", 3, "png")
    assert {path.name for path in folder.glob("*.png")} == {"vae_00000.png", "vae_00001.png", "vae_00002.png"}
    for i, image in enumerate(images[:, 0]):
        pixels = imread(folder / f"vae_{i:05d}.png")
        assert pixels.dtype == np.uint16
        assert np.abs(pixels / 65535 * 2 - 1 - image).max() < 1.01 / 65535


def test_nifti_lies_as_acdc_with_the_right_spacing():
    images, _ = floats(exported("vae", 2, "npz", "--format", "npz"), 2)
    folder = exported("vae", 2, "nifti", "--format", "nifti")
    for i, image in enumerate(images[:, 0]):
        nifti = nib.load(folder / f"vae_{i:05d}.nii.gz")
        voxels = np.asarray(nifti.dataobj)
        assert voxels.shape == (32, 32, 1)
        assert voxels.dtype == np.int16
        assert np.abs(voxels[:, :, 0].T / 4095 * 2 - 1 - image).max() < 1.01 / 4095
        assert nifti.header.get_zooms() == (2.5, 2.5, 8.0)
        assert nifti.header.get_xyzt_units()[0] == "mm"
        assert nib.aff2axcodes(nifti.affine) == nib.aff2axcodes(np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize(("file_format", "highest"), [("png", 65535), ("nifti", 4095)])
def test_black_and_white_are_the_ends_of_the_scale(tmp_path, file_format, highest):
    image = np.zeros((4, 4), np.float32)
    image[0, 3], image[1, 0] = -1, 1  # row, column
    path = tmp_path / ("image." + export.SUFFIXES[file_format])
    export.write_image(path, image, {"format": file_format, "spacing_mm": [1, 1, 1]})
    pixels = imread(path) if file_format == "png" else np.asarray(nib.load(path).dataobj)[:, :, 0].T
    assert pixels[0, 3] == 0
    assert pixels[1, 0] == highest
    assert abs(pixels[2, 2] - highest / 2) <= 0.5


@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
def test_manifest_and_datalist(here, file_format):
    folder = exported("vae", 3, "out", "--format", file_format, "--seed", 7)
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "model", "group", "seed", "index", "copy", "run", "weights_sha256"]
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    for row in rows:
        assert (folder / row["file"]).is_file()
        assert (row["model"], row["group"], row["seed"], row["run"]) == ("vae", "HCM", "7", "small")
        assert len(row["weights_sha256"]) == 64

    datalist = json.loads((folder / "datalist.json").read_text())
    assert set(datalist) == {"name", "description", "labels", "numTraining", "training"}
    assert datalist["labels"] == {"0": "NOR", "1": "MINF", "2": "DCM", "3": "HCM", "4": "RV"}
    assert datalist["numTraining"] == len(datalist["training"]) == (1 if file_format == "npz" else 3)
    assert [entry["image"] for entry in datalist["training"]] == list(dict.fromkeys(row["file"] for row in rows))
    assert {entry["label"] for entry in datalist["training"]} == {3}
    for name in ("manifest.csv", "datalist.json", "export.json"):
        text = (folder / name).read_text()
        assert str(here) not in text
        assert "patient0" not in text


def test_hash_is_that_of_the_weights(here):
    weights = here / "runs/small/vae/weights.safetensors"
    manifest = (exported("vae", 1, "out") / "manifest.csv").read_text()
    assert manifest.endswith("small," + hashlib.sha256(weights.read_bytes()).hexdigest() + "\n")


def test_fewer_images_are_the_first_of_more():
    more = content(exported("vae", 120, "more"))
    fewer = content(exported("vae", 57, "fewer"))
    images = {name: data for name, data in fewer.items() if name.endswith(".png")}
    assert len(images) == 57
    assert all(more[name] == data for name, data in images.items())
    drawn = [data for name, data in more.items() if name.endswith(".png")]
    assert len(set(drawn)) == 120, "no image is drawn twice"


def test_the_seed_decides():
    same, again, other = (content(exported("vae", 2, f"{i}", "--seed", seed)) for i, seed in enumerate((1, 1, 2)))
    assert same == again
    assert not {data for name, data in same.items() if name.endswith("png")} & set(other.values())


@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
@pytest.mark.parametrize("stop_at", [1, 2, 40, 62, 72, 74])
def test_an_interrupted_export_continues(monkeypatch, file_format, stop_at):
    whole = content(exported("vae", 70, "whole", "--format", file_format))
    calls, write_whole = [], export.write_whole

    def stopping(path, write):
        calls.append(path)
        if len(calls) == stop_at:
            write(path.with_name(f".{path.name}.part"))  # it leaves half a file's work behind
            raise KeyboardInterrupt
        write_whole(path, write)

    monkeypatch.setattr(export, "write_whole", stopping)
    result = hcm("vae", "-n", 70, "--out", "out", "--format", file_format)
    assert result.exit_code == 130
    monkeypatch.setattr(export, "write_whole", write_whole)
    assert stop_at == 1 or not export.read_state(Path("out"))["finished"]
    exported("vae", 70, "out", "--format", file_format)
    assert content("out") == whole


def test_what_is_there_is_not_drawn_again(monkeypatch):
    folder = exported("vae", 70, "out")
    export.write_state(folder, export.read_state(folder)["settings"], finished=False)
    (folder / "vae_00069.png").unlink()
    blocks, draw = [], export.draw

    def counted(network, settings, block):
        blocks.append(block)
        return draw(network, settings, block)

    monkeypatch.setattr(export, "draw", counted)
    exported("vae", 70, "out")
    assert blocks == [1]


def test_an_unfinished_export_with_other_settings_is_refused():
    unfinished()
    before = content("out")
    assert "of another seed;" in refusal("vae", "-n", 3, "--out", "out", "--seed", 1)
    assert "of another images;" in refusal("vae", "-n", 4, "--out", "out")
    assert "format and spacing_mm" in refusal("vae", "-n", 3, "--out", "out", "--format", "nifti")
    save_model("vae", latent_dim=5)
    assert "another weights_sha256" in refusal("vae", "-n", 3, "--out", "out")
    assert content("out") == before


def test_force_replaces_an_export_wholly():
    exported("vae", 5, "out", "--format", "nifti")
    assert "--force would replace" in refusal("vae", "-n", 2, "--out", "out")
    expected = content(exported("vae", 2, "expected"))
    assert content(exported("vae", 2, "out", "--force")) == expected
    unfinished("half")
    assert content(exported("vae", 2, "half", "--force")) == expected


@pytest.mark.parametrize("name", ["notes.txt", "vae_00003.png", "gan_00000.png", ".hidden", "folder/notes.txt"])
def test_force_never_deletes_other_files(name):
    exported("vae", 3, "out")
    other = Path("out") / name
    other.parent.mkdir(exist_ok=True)
    other.write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert f"holds {name.split('/')[0]}" in refusal("vae", "-n", 2, "--out", "out", "--force")
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_a_folder_that_is_no_export_is_left_alone(here):
    (here / "mine").mkdir()
    (here / "mine" / "manifest.csv").write_text("mine")
    assert "holds files" in refusal("vae", "--out", "mine")
    assert "holds manifest.csv" in refusal("vae", "--out", "mine", "--force")
    for text in ("{}", "[]", "broken"):
        (here / "mine" / "export.json").write_text(text)
        assert "no export of ours" in refusal("vae", "--out", "mine", "--force")
    assert (here / "mine" / "manifest.csv").read_text() == "mine"
    assert "is a file" in refusal("vae", "--out", "mine/manifest.csv", "--force")


def test_bad_input_does_not_cost_an_earlier_export():
    exported("vae", 2, "out")
    before = content("out")
    refusal("vae", "-n", 2, "--out", "out", "--group", "RV", "--force")
    assert content("out") == before


@pytest.mark.parametrize("model", ["acgan", "diffusion"])
def test_a_conditional_model_draws_the_group_it_is_asked_for(model):
    save_model(model, GROUPS, num_classes=5)
    drawn = {}
    for group in ("RV", "HCM"):
        drawn[group], labels = floats(exported(model, 2, group, "--group", group, "--format", "npz"), 2)
        assert set(labels) == {GROUPS.index(group)}
    assert np.abs(drawn["RV"] - drawn["HCM"]).max() > 1e-4
    default, labels = floats(exported(model, 2, "default", "--format", "npz"), 2)
    assert np.array_equal(default, drawn["HCM"])


def test_a_group_that_was_not_learned_is_refused():
    assert "has learned to draw HCM only" in refusal("vae", "--out", "out", "--group", "NOR")
    assert content(exported("vae", 1, "asked", "--group", "hcm")) == content(exported("vae", 1, "not_asked"))
    save_model("acgan", ["NOR", "RV"])
    assert "has learned to draw NOR or RV only" in refusal("acgan", "--out", "out", "--group", "HCM")
    assert not Path("out").exists()


def test_a_mixture_has_no_label():
    save_model("vae", ["NOR", "HCM"])
    assert "NOR+HCM only" in refusal("vae", "--out", "out", "--group", "HCM")
    folder = exported("vae", 1, "out")
    assert json.loads((folder / "datalist.json").read_text())["training"][0]["label"] == -1
    assert ",NOR+HCM," in (folder / "manifest.csv").read_text()


def test_what_is_missing_is_named(here):
    assert "nearest is 'diffusion'" in refusal("difusion", "--out", "out")
    assert "gan/run.json is missing" in refusal("gan", "--out", "out")
    result = CliRunner().invoke(cli.cli, ["sample", "large", "vae", "--out", "out"])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "large: there is no such run" in result.output

    (here / "runs/small/vae/weights.safetensors").unlink()
    assert "weights.safetensors is missing" in refusal("vae", "--out", "out")
    (here / "runs/small/vae/run.json").write_text("{")
    assert "run.json is broken" in refusal("vae", "--out", "out")
    assert not Path("out").exists()


def test_a_run_may_be_a_path(here, monkeypatch):
    expected = content(exported("vae", 1, "by_name"))
    monkeypatch.chdir("runs/small/vae")
    result = CliRunner().invoke(cli.cli, ["sample", "..", "vae", "-n", "1", "--out", str(here / "by_path")])
    assert result.exit_code == 0, result.output
    assert content(here / "by_path") == expected


def test_weights_and_parameters_that_do_not_fit():
    training.save_weights(VAE(32, 5, 8), Path("runs/small/vae"))
    assert "weights of another network" in refusal("vae", "--out", "out")
    facts = {"groups": ["HCM"], "image_size": 32, "width": 8, "augment": True, "prior_components": 2}
    training.write_run_json("runs/small/vae", parameters=facts)
    assert "lacks the parameter 'latent_dim'" in refusal("vae", "--out", "out")


@pytest.mark.parametrize("claim", [{"width": 80_000}, {"latent_dim": 10**9}, {"num_blocks": 10**6}])
def test_a_record_that_claims_a_giant_network_takes_no_memory(claim):
    facts = json.loads(Path("runs/small/vae/run.json").read_text())["parameters"]
    training.write_run_json("runs/small/vae", parameters=facts | claim)
    text = refusal("vae", "--out", "out")  # where it tried, PyTorch would find no memory
    assert "weights of another network" in text or "num_blocks=1000000: choose 0 to 16" in text


def test_nifti_needs_the_slices_that_were_learned(here):
    (here / "runs/small/slices/slices.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    assert "are not the slices" in refusal("vae", "--out", "out", "--format", "nifti")
    (here / "runs/small/slices/manifest.csv").unlink()
    assert "holds no manifest.csv" in refusal("vae", "--out", "out", "--format", "nifti")
    exported("vae", 1, "out")


def test_no_two_blocks_share_a_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(training, "generate", lambda network, n, labels, seed: seeds.append(seed))
    for block in range(1000):
        export.draw(None, {"seed": 3, "group": "HCM"}, block)
    assert len({seed % 2**32 for seed in seeds}) == 1000, "PyTorch's generator looks at 32 bits"
    with pytest.raises(DataError, match="no such run"):
        export.find_run("nowhere")


# With masks


def test_masks_are_those_that_were_drawn_with_the_images():
    network, _ = export.load_model(save_model("diffusion", with_masks=True), "diffusion")
    images, masks = export.draw(network, {"seed": 0, "group": "HCM", "masks": True}, 0)
    assert set(masks[:3].unique().tolist()) == {0, 1, 2, 3}, "random weights draw all structures"
    folder = exported("diffusion", 3, "npz", "--format", "npz", "--with-masks")
    assert np.array_equal(floats(folder, 3)[0], images[:3])
    assert np.array_equal(training.load_masks(folder), masks[:3])
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "manifest.csv", "datalist.json", "export.json"}

    folder = exported("diffusion", 3, "png", "--with-masks")
    for i in range(3):
        assert np.array_equal(imread(folder / f"diffusion_{i:05d}_gt.png"), masks[i])
        assert imread(folder / f"diffusion_{i:05d}.png").dtype == np.uint16
    folder = exported("diffusion", 3, "nifti", "--format", "nifti", "--with-masks")
    for i in range(3):
        pair = [nib.load(folder / f"diffusion_{i:05d}{kind}.nii.gz") for kind in ("", "_gt")]
        assert np.array_equal(np.asarray(pair[1].dataobj)[:, :, 0].T, masks[i])
        assert np.array_equal(pair[0].affine, pair[1].affine)
    rows = list(csv.DictReader((folder / "manifest.csv").open(newline="")))
    assert [row["mask"] for row in rows] == [f"diffusion_{i:05d}_gt.nii.gz" for i in range(3)]
    listed = json.loads((folder / "datalist.json").read_text())["training"]
    assert [entry["label"] for entry in listed] == [row["mask"] for row in rows]
    assert {entry["group"] for entry in listed} == {3}


def test_a_missing_mask_is_drawn_again_and_force_removes_masks():
    save_model("diffusion", with_masks=True)
    before = content(exported("diffusion", 60, "out", "--with-masks"))
    state = Path("out/export.json")
    state.write_text(state.read_text().replace('"finished": true', '"finished": false'))
    Path("out/diffusion_00055_gt.png").unlink()
    assert content(exported("diffusion", 60, "out", "--with-masks")) == before
    exported("diffusion", 2, "out", "--force")
    assert not list(Path("out").glob("*_gt.png"))


def test_masks_of_a_model_without_them_are_refused():
    save_model("diffusion")
    for model in ("vae", "diffusion"):
        assert "--with-masks: this" in refusal(model, "--out", "out", "--with-masks")
    assert not Path("out").exists()
