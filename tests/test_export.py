"""`hcm sample`: what it writes, read back by other libraries; what it continues, refuses and never deletes."""

import csv
import gzip
import hashlib
import json
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage.io import imread

from hcm_helpers import cli, export, training
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.models.vae import VAE

SIZE = {"image_size": 32, "width": 8}
LATENT = SIZE | {"latent_dim": 4}
GAME = {"loss": "hinge", "spectral_norm": True, "label_smoothing": 0.1, "gradient_penalty": 0.0, "augment": True}
PARAMETERS = {
    "vae": LATENT | {"augment": True, "prior_components": 2, "num_blocks": 1, "kl_warmup": 3},
    "gan": LATENT | {"label_smoothing": 0.1, "gradient_penalty": 0.0},
    "dcgan": LATENT | GAME,
    "acgan": LATENT | GAME | {"classifier": "cosine", "class_weight": 0.2, "num_classes": 5},
    "infogan": LATENT
    | GAME
    | {"num_categories": 3, "num_continuous": 2, "mutual_information_weight": 1.0, "least_sigma": 0.2},
    "diffusion": SIZE
    | {"recipe": "edm", "num_steps": 10, "schedule": "cosine", "sigma_data": 0.5, "P_mean": -0.8, "P_std": 1.2}
    | {"dropout": 0.0, "augment": 0.0, "num_classes": 0, "drop_conditions": 0.1, "guidance": 1.0}
    | {"with_masks": False, "optimizer": "muon", "sampler": "ddim", "sampling_steps": 1},
}


def save_model(name, groups=("HCM",), **changed):
    """runs/small/NAME as a notebook leaves it, with random weights."""
    parameters = PARAMETERS[name] | changed
    torch.manual_seed(0)
    network = export.NETWORKS[name](**parameters)
    for weight in network.parameters():  # a U-Net begins with zeros
        weight.data += 0.1 * torch.randn(weight.shape)
    folder = Path("runs/small") / name
    folder.mkdir(parents=True, exist_ok=True)
    training.save_weights(network, folder)
    facts = {"parameters": {"groups": list(groups), "epochs": 3, **parameters}, "seed": 0, "data": "f" * 64}
    training.write_run_json(folder, **facts)
    return folder


def write_manifest(folder, rows):
    """manifest.csv of slices (patient, group, split, thickness in mm)."""
    columns = "patient,group,phase,frame,slice,position,labelled,pixel_mm,thickness_mm,split"
    lines = [columns, *(f"{p},{g},ED,1,2,0.5,True,2.5,{mm},{s}" for p, g, s, mm in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def save_slices(fingerprint="f" * 64):
    """runs/small/slices: four HCM slices, most of them 8 mm thick, and one of another group."""
    folder = Path("runs/small/slices")
    folder.mkdir(parents=True)
    rows = [("patient021", "HCM", "train", mm) for mm in (5.0, 8.0, 8.0)]
    rows += [("patient022", "HCM", "test", 3.0), ("patient001", "DCM", "train", 3.0)]
    write_manifest(folder, rows)
    (folder / "slices.json").write_text(json.dumps({"fingerprint": fingerprint}))
    np.save(folder / "images.npy", np.zeros((5, 1, 32, 32), np.float32))
    np.save(folder / "masks.npy", np.zeros((5, 32, 32), np.uint8))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own with the run `small`: a VAE and the slices that it has learned from."""
    monkeypatch.chdir(tmp_path)
    save_model("vae")
    save_slices()
    return tmp_path


def hcm(*arguments):
    """Calls `hcm sample small …`."""
    return CliRunner().invoke(cli.cli, ["sample", "small", *(str(argument) for argument in arguments)])


def exported(model, n, folder, *options):
    """The folder, after an export that went well."""
    result = hcm(model, "-n", n, "--out", folder, *options)
    assert result.exit_code == 0, result.output
    return Path(folder)


def refusal(*arguments):
    """The sentence by which a call is refused."""
    result = hcm(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("hcm: ")
    assert result.output.count("\n") == 1
    return result.output


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def floats(folder, n):
    """The images of an export as npz, with its checks."""
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (n, 1, 32, 32)
        assert arrays["images"].dtype == np.float32
        assert arrays["labels"].shape == (n,)
        return arrays["images"], arrays["labels"]


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


def unfinished(folder="out"):
    exported("vae", 3, folder)
    export.write_state(Path(folder), export.read_state(Path(folder))["settings"], finished=False)


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


# Without copies


def noise_of(block):
    """What the model of these tests draws in a block: 50 images of noise, no two of them alike."""
    return torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(block)) * 2 - 1


@pytest.fixture
def copies(monkeypatch):
    """A model of noise, and the blocks that have been drawn from it."""
    drawn = []

    def draw(network, settings, block):
        drawn.append(block)
        return (noise_of(block),)

    monkeypatch.setattr(export, "draw", draw)
    return drawn


def learn(*places, held_out=20):
    """runs/small/slices anew: the candidates at these places in training; held-out noise, one 0.6 like the first."""
    candidates = torch.cat([noise_of(block) for block in range(6)])
    others = torch.rand(held_out, 1, 32, 32, generator=torch.Generator().manual_seed(99)) * 2 - 1
    others[:1] = 0.42 * candidates[places[0]] + 0.56 * others[:1]
    folder = Path("runs/small/slices")
    rows = ["train"] * len(places) + ["validation", "test"] * (held_out // 2)
    write_manifest(folder, [(f"patient{i:03d}", "HCM", split, 8.0) for i, split in enumerate(rows)])
    images = torch.cat([candidates[list(places)] * 0.5 + 0.1, others])  # of less contrast, and brighter
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "masks.npy", np.zeros((len(rows), 32, 32), np.uint8))


def without(places, n):
    candidates = torch.cat([noise_of(block) for block in range(6)])
    return candidates[[i for i in range(300) if i not in places][:n]].numpy()


def facts_of(folder):
    return json.loads((Path(folder) / "export.json").read_text())


COPIES = (3, 10, 49, 50, 51, 77)


def test_copies_are_left_out_and_counted(copies):
    learn(*COPIES)
    images, _ = floats(exported("vae", 60, "out", "--format", "npz", "--reject-copies"), 60)
    assert np.array_equal(images, without(COPIES, 60))
    facts = facts_of("out")
    assert (facts["drawn"], facts["rejected"], facts["kept"]) == (100, 6, [47, 47])
    assert facts["settings"]["copies_above"] == pytest.approx(0.6, abs=0.05)
    images, _ = floats(exported("vae", 60, "all", "--format", "npz"), 60)
    assert np.array_equal(images, without((), 60))
    assert "rejected" not in facts_of("all")
    assert marks("out") == ["False"] * 60


def marks(folder):
    return [row["copy"] for row in csv.DictReader((Path(folder) / "manifest.csv").open(newline=""))]


@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
def test_copies_are_marked_and_named(copies, file_format):
    learn(*COPIES, 78, 79)
    result = hcm("vae", "-n", 80, "--out", "out", "--format", file_format)
    assert result.exit_code == 0, result.output
    assert [i for i, mark in enumerate(marks("out")) if mark == "True"] == [*COPIES, 78, 79]
    assert marks("out").count("False") == 72
    (line,) = [line for line in result.output.splitlines() if "copies" in line]
    assert line.startswith("8 of 80 images are copies of a training slice (r above 0.")
    named = {"npz": "samples.npz[{}]"}.get(file_format, "vae_{:05d}." + export.SUFFIXES[file_format])
    assert ": " + ", ".join(named.format(i) for i in COPIES[:5]) + " and 3 more; " in line

    result = hcm("vae", "-n", 3, "--out", "few", "--format", file_format)
    assert "0 of 3 images are copies" in result.output
    assert marks("few") == ["False"] * 3


def test_where_copies_cannot_be_told_a_line_says_why(copies, here):
    learn(*COPIES, held_out=18)
    before = content(exported("vae", 4, "few_held_out"))
    for why in ("18 held-out slices are too few", "are not the slices", "holds no images.npy"):
        result = hcm("vae", "-n", 4, "--out", "out", "--force")
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.output.splitlines() if "could not be told" in line]
        assert why in line
        assert marks("out") == [""] * 4
        assert content("out") == before
        slices = here / "runs/small/slices"
        (slices / "slices.json").write_text(json.dumps({"fingerprint": "0" * 64}))
        if why == "are not the slices":
            (slices / "images.npy").unlink()


@pytest.mark.parametrize("model", ["vae", "diffusion"])
@pytest.mark.parametrize("file_format", ["png", "nifti", "npz"])
def test_no_patient_and_no_path_is_in_any_file(here, model, file_format):
    """Nor a time: what the files hold is the images and the settings."""
    learn(*COPIES)
    if model == "diffusion":
        save_model(model, with_masks=True)
    options = ["--with-masks"] if model == "diffusion" else []
    folder = exported(model, 3, "out", "--format", file_format, *options)
    secrets = ["patient", str(here), time.strftime("%Y-%m-%d")]
    for path in folder.iterdir():
        written = path.read_bytes()
        if path.suffix == ".gz":
            assert written[3:8] == bytes(5), "no name, comment or time in gzip's header"
            written = gzip.decompress(written)
            header = nib.load(path).header
            assert not header.extensions
            for field in ("descrip", "aux_file", "intent_name", "data_type", "db_name"):
                assert header[field] == b""
        if path.suffix == ".png":
            assert Image.open(path).info == {}
        if path.suffix == ".npz":
            for member in zipfile.ZipFile(path).infolist():
                assert member.filename in ("images.npy", "labels.npy", "masks.npy")
                assert (member.comment, member.date_time) == (b"", (1980, 1, 1, 0, 0, 0))
        for secret in secrets:
            assert secret.encode() not in written, f"{path.name} holds {secret}"
    assert set(facts_of("out")) == {"made_by", "finished", "settings"}
    known = {"run", "model", "group", "seed", "images", "format", "masks", "weights_sha256", "spacing_mm"}
    assert set(facts_of("out")["settings"]) <= known


def test_fewer_images_without_copies_are_the_first_of_more(copies):
    learn(*COPIES)
    more, fewer = (content(exported("vae", n, f"{n}", "--reject-copies")) for n in (120, 48))
    images = [name for name in fewer if name.endswith(".png")]
    assert len(images) == 48
    assert all(more[name] == fewer[name] for name in images)


@pytest.mark.parametrize("file_format", ["png", "npz"])
@pytest.mark.parametrize("stop_at", [1, 30, 49, 75, 99, 120, 172])
def test_an_interrupted_export_without_copies_continues(copies, monkeypatch, file_format, stop_at):
    learn(*COPIES)
    options = ("--format", file_format, "--reject-copies")
    whole = content(exported("vae", 120, "whole", *options))
    calls, write_whole = [], export.write_whole

    def stopping(path, write):
        calls.append(path)
        if len(calls) == stop_at:
            write(path.with_name(f".{path.name}.part"))
            raise KeyboardInterrupt
        write_whole(path, write)

    monkeypatch.setattr(export, "write_whole", stopping)
    stopped = hcm("vae", "-n", 120, "--out", "out", *options).exit_code
    assert stopped == (130 if stop_at <= len(calls) else 0)
    monkeypatch.setattr(export, "write_whole", write_whole)
    if stopped:
        copies.clear()
        exported("vae", 120, "out", *options)
        finished = max(0, (stop_at - 2) // 48)  # blocks of 47 images and a line in export.json
        assert file_format == "npz" or copies == list(range(min(finished, 2), 3)) or stop_at >= 122
    assert content("out") == whole


def test_a_model_of_copies_is_given_up(copies):
    learn(*(place for place in range(200) if place % 40))
    sentence = refusal("vae", "-n", 20, "--out", "out", "--reject-copies")
    assert "195 of 200 images are copies" in sentence
    assert copies == [0, 1, 2, 3]
    assert "195 of 200" in refusal("vae", "-n", 20, "--out", "out", "--reject-copies")
    assert copies == [0, 1, 2, 3], "what is known is not drawn again"
    exported("vae", 5, "few", "--reject-copies")


def test_a_model_of_many_copies_goes_on(copies):
    learn(*(place for place in range(300) if place % 10))
    exported("vae", 25, "out", "--reject-copies")
    assert facts_of("out")["kept"] == [5] * 5


def test_without_copies_needs_the_slices_that_tell_them(copies):
    learn(*COPIES, held_out=18)
    assert "18 held-out slices are too few" in refusal("vae", "--out", "out", "--reject-copies")
    learn(*COPIES, held_out=0)
    assert "no slices of validation or test" in refusal("vae", "--out", "out", "--reject-copies")
    learn(*COPIES)
    Path("runs/small/slices/slices.json").write_text(json.dumps({"fingerprint": "0" * 64}))
    assert "are not the slices" in refusal("vae", "--out", "out", "--reject-copies")
    assert not Path("out").exists()


def test_an_unfinished_export_with_copies_is_not_continued_without_them(copies):
    learn(*COPIES)
    unfinished()
    assert "of another copies_above;" in refusal("vae", "-n", 3, "--out", "out", "--reject-copies")
