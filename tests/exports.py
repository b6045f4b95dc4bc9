"""A small run to export from, and calls of `hcm sample` on it."""

import json
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner

from hcm_helpers import cli, export, training

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


def unfinished(folder="out"):
    exported("vae", 3, folder)
    export.write_state(Path(folder), export.read_state(Path(folder))["settings"], finished=False)
