"""Images of a trained run as files for other programs: 16-bit PNG, NIfTI or one npz, with a manifest and a datalist.

Image i of a seed is the same whatever the number of images, and however often the export was interrupted: images are
drawn in blocks of 50, each from a seed of its own and always whole. Where copies are rejected, the images are what is
left of the blocks, in their order, and export.json says how many that is of each; otherwise manifest.csv marks them.
"""

import gzip
import hashlib
import inspect
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from hcm_helpers import devices, training
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.files import read_json, read_npy, write_whole
from hcm_helpers.memorisation import copy_threshold, held_out_slices, nearest_by_pixels
from hcm_helpers.models.acgan import ACGAN
from hcm_helpers.models.dcgan import DCGAN
from hcm_helpers.models.diffusion import Diffusion, split_masks
from hcm_helpers.models.gan import GAN
from hcm_helpers.models.infogan import InfoGAN
from hcm_helpers.models.vae import VAE
from hcm_helpers.slices import Slices, load_slices

NETWORKS = {"vae": VAE, "gan": GAN, "dcgan": DCGAN, "acgan": ACGAN, "infogan": InfoGAN, "diffusion": Diffusion}
ADDED_LATER = ("copy_penalty", "classify_fakes")  # earlier runs lack them, and to draw they are not needed
SUFFIXES = {"png": "png", "nifti": "nii.gz", "npz": "npy"}  # of an image; those of an npz wait in .npy for the others
TABLES = ("samples.npz", "manifest.csv", "datalist.json")
STATE = "export.json"
BLOCK = 50  # images drawn from one seed
NAMED = 5  # copies that are named in a line; manifest.csv names all
TRIED, LEAST = 4 * BLOCK, 0.05  # after so many images a model must make this share of them that are no copies

Settings = dict[str, Any]


def sample(
    run: str | Path,
    model: str,
    n: int,
    folder: str | Path,
    file_format: str = "png",
    group: str | None = None,
    seed: int = 0,
    force: bool = False,
    reject_copies: bool = False,
    with_masks: bool = False,
    echo: Callable[[str], None] = print,
) -> Settings:
    """Draw n images from a trained model into a folder, or go on with an unfinished export there.

    Args:
        run: the run's folder, or its name below runs/.
        model: a key of NETWORKS.
        n: how many images, at least 1.
        folder: gets the images, manifest.csv, datalist.json and export.json, which says how far the export is.
        file_format: a key of SUFFIXES.
        group: one of GROUPS; None: HCM from a conditional model, from another what it has learned.
        seed: 0 to 2³² − 1; the same seed, weights and machine give the same bytes.
        force: replace an earlier export in the folder.
        reject_copies: draw another image for each that is nearer to a training slice than `copy_threshold` of the
            run's held-out slices; export.json says how many were drawn and rejected. Without it they are marked in
            manifest.csv, if the run's slices are still there.
        with_masks: write the mask of each image beside it, 0 to 3 as ACDC's, from a model that draws both.
        echo: prints one line, which names the copies.

    Returns:
        What was exported: the settings that export.json holds.

    Raises:
        DataError: no such run or trained model, a group or masks that it cannot draw, a folder with something else
            in it, or a model that makes hardly anything but copies.
    """
    source, folder = find_run(run), Path(folder)
    network, facts = load_model(source / model, model)
    if with_masks and not getattr(network, "with_masks", False):
        raise DataError(
            f"--with-masks: this {model} has learned images only; leave it out, or train the diffusion model with "
            "--set diffusion.with_masks=True"
        )
    settings = {
        "run": source.name,
        "model": model,
        "group": choose_group(model, facts["parameters"], group),
        "seed": seed,
        "images": n,
        "format": file_format,
        "masks": with_masks,
        "weights_sha256": hashlib.sha256((source / model / "weights.safetensors").read_bytes()).hexdigest(),
    }
    if file_format == "nifti":
        settings["spacing_mm"] = spacing(learned_slices(source, facts))
    train = None
    if reject_copies:
        train, settings["copies_above"] = learned_and_threshold(source, facts)
    prepare_folder(folder, settings, force)

    kept = write_images(folder, settings, network, train)
    copies = [False] * n if reject_copies else tell_copies(folder, settings, source, facts, echo)
    if file_format == "npz":
        arrays = [np.stack([read_npy(folder / name) for name in names]) for names in file_names(settings)]
        images, *masks = map(torch.from_numpy, arrays)
        training.save_samples(images[:, None], folder, torch.full((n,), label(settings)), *masks)
        for name in chain(*file_names(settings)):
            (folder / name).unlink()
    write_tables(folder, settings, copies)
    write_state(folder, settings, finished=True, kept=kept if reject_copies else None)
    return settings


def find_run(run: str | Path) -> Path:
    """The run's folder, from its name below runs/ or its path; DataError if there is none."""
    for folder in (Path("runs") / run, Path(run)):
        if folder.is_dir():
            return folder.resolve()
    raise DataError(f"{run}: there is no such run below runs/ and no such folder; `hcm run --run {run}` makes one")


def load_model(folder: Path, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network in a model's folder, built by the parameters in its run.json, and that run.json.

    Raises:
        DataError: run.json or the weights are missing, broken or do not fit each other.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise DataError(f"{path} is missing: train this model to its end, by its notebook or by `hcm run`")
    facts = read_json(path, "train this model again")
    parameters = facts.get("parameters")
    if not isinstance(parameters, dict):
        raise DataError(f"{path} is broken (it has no parameters): train this model again")
    arguments = [key for key in inspect.signature(NETWORKS[name]).parameters if key not in ADDED_LATER]
    for key in ("groups", *arguments):
        if key not in parameters:
            raise DataError(f"{path} lacks the parameter {key!r}: train this model again")
    with torch.device("meta"):  # its shapes, which take no memory, however large they claim to be
        sketch = NETWORKS[name](**{key: parameters[key] for key in arguments})
    training.check_weights(sketch, folder)
    network = NETWORKS[name](**{key: parameters[key] for key in arguments})
    network = training.load_weights(network, folder).to(devices.make_fabric().device)
    return network.to(memory_format=torch.channels_last), facts  # as `training.fit` leaves it: faster on a CPU


def choose_group(model: str, parameters: dict[str, Any], wanted: str | None) -> str:
    """The group of the images: the wanted one, if the model can draw it; NOR+HCM of one that learned both as one.

    Raises:
        DataError: it cannot.
    """
    groups = parameters["groups"] if parameters.get("num_classes") else ["+".join(parameters["groups"])]
    group = wanted or ("HCM" if "HCM" in groups else groups[0])
    if group not in groups:
        raise DataError(f"--group {group}: this {model} has learned to draw {' or '.join(groups)} only; leave it out")
    return group


def label(settings: Settings) -> int:
    """The index of the images' group in GROUPS, −1 for a mixture."""
    return GROUPS.index(settings["group"]) if settings["group"] in GROUPS else -1


def learned_slices(run: Path, facts: dict[str, Any]) -> Slices:
    """The slices that a model with this run.json has learned from.

    Raises:
        DataError: the run's slices are not there any more, or are others.
    """
    train = load_slices(run / "slices", "train", facts["parameters"]["groups"])
    if train.fingerprint != facts["data"]:
        raise DataError(
            f"{run / 'slices'}: are not the slices that this model learned from, which --format nifti and "
            "--reject-copies need; train it again or leave these out"
        )
    return train


def learned_and_threshold(run: Path, facts: dict[str, Any]) -> tuple[Slices, float]:
    """The slices that a model has learned from, and the correlation with one above which an image is a copy.

    Raises:
        DataError: as `learned_slices`, or too few held-out slices to tell.
    """
    train = learned_slices(run, facts)
    held_out = held_out_slices(run / "slices", facts["parameters"]["groups"])
    return train, copy_threshold(nearest_by_pixels(held_out.images, train)[0])


def tell_copies(
    folder: Path, settings: Settings, run: Path, facts: dict[str, Any], echo: Callable[[str], None]
) -> list[bool] | list[None]:
    """Which of the images in a folder are copies of training slices; None each where that cannot be told.

    One line says how many and names some of them, or why it cannot be told.
    """
    names, copies = file_names(settings)[0], []
    try:
        train, threshold = learned_and_threshold(run, facts)
        for start in range(0, len(names), BLOCK):
            images = [read_image(folder / name, settings) for name in names[start : start + BLOCK]]
            copies += (nearest_by_pixels(torch.stack(images), train)[0] > threshold).tolist()
    except DataError as error:
        echo(f"whether images are copies of training slices could not be told ({error})")
        return [None] * len(names)
    if settings["format"] == "npz":
        names = [f"samples.npz[{i}]" for i in range(len(names))]
    found = [name for name, copy in zip(names, copies, strict=True) if copy]
    some = ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
    rest = f": {some}; manifest.csv marks them, --reject-copies draws others" if found else ""
    echo(f"{len(found)} of {len(names)} images are copies of a training slice (r above {threshold:g}){rest}")
    return copies


def spacing(train: Slices) -> list[float]:
    """Width, height and thickness of a pixel in mm, the last the median over the slices."""
    return [train.pixel_mm, train.pixel_mm, float(train.manifest["thickness_mm"].median())]


def prepare_folder(folder: Path, settings: Settings, force: bool) -> None:
    """Let the folder hold an unfinished export with these settings: the one it holds, or one without images.

    Raises:
        DataError: something would be lost; nothing has been changed.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    held = list(folder.iterdir()) if folder.is_dir() else []
    held = [path for path in held if path.name != f".{STATE}.part"]  # an interruption at the very beginning
    state = read_state(folder)
    if state and not state["finished"] and not force:
        before = state["settings"]
        other = [name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name)]
        if other:
            raise DataError(
                f"{folder}: holds an unfinished export of another {' and '.join(sorted(other))}; "
                "repeat its command, replace it by --force, or name another folder"
            )
        return
    if held and not force:
        what = "an export, which --force would replace" if state else "files, and this command adds to no others"
        raise DataError(f"{folder}: holds {what}; name another folder")

    names = {*chain(*file_names(state["settings"])), *TABLES, STATE} if state else set()
    names |= {f".{name}.part" for name in names}  # what an interruption leaves of `write_whole`
    for path in held:
        if path.name not in names or path.is_dir():
            raise DataError(f"{folder}: holds {path.name}, which is of no export of ours; name another folder")
    for path in held:
        if path.name != STATE:  # to the last, this folder is known as ours
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder, settings, finished=False)


def file_names(settings: Settings) -> list[list[str]]:
    """The file of each image, vae_00000.png and so on; and of each mask, diffusion_00000_gt.png, if there are masks."""
    kinds, suffix = ("", "_gt") if settings.get("masks") else ("",), SUFFIXES[settings["format"]]
    return [[f"{settings['model']}_{i:05d}{kind}.{suffix}" for i in range(settings["images"])] for kind in kinds]


def write_images(folder: Path, settings: Settings, network: nn.Module, train: Slices | None) -> list[int]:
    """Draw what is not in the folder yet, block after block, without what copies a slice of train, if that is given.

    Returns:
        How many images of each block are taken.

    Raises:
        DataError: the model makes hardly anything but copies.
    """
    n = settings["images"]
    paths = [[folder / name for name in names] for names in zip(*file_names(settings), strict=True)]  # of each image
    kept = [BLOCK] * -(-n // BLOCK) if train is None else read_state(folder).get("kept", [])
    done = block = 0
    with tqdm(total=n, desc=settings["model"], unit="image", disable=None) as bar:  # in a terminal only
        while done < n:
            known = block < len(kept)
            if not known or not all(path.is_file() for path in chain(*paths[done : done + kept[block]])):
                images, *masks = draw(network, settings, block)
                own = torch.ones(BLOCK, dtype=torch.bool)
                if train is not None:
                    nearness, _ = nearest_by_pixels(images, train)
                    own = torch.from_numpy(nearness <= settings["copies_above"])
                drawn = zip(images[own, 0].numpy(), *(mask[own].numpy() for mask in masks), strict=True)
                for files, arrays in zip(paths[done:], drawn, strict=False):  # the last block has a rest
                    for path, array in zip(files, arrays, strict=True):
                        write_whole(path, lambda part, array=array: write_image(part, array, settings))
                if not known:
                    kept.append(int(own.sum()))
                    write_state(folder, settings, finished=False, kept=kept)
            bar.update(min(kept[block], n - done))
            done += kept[block]
            block += 1
            drawn = block * BLOCK
            if done < n and drawn >= TRIED and done < LEAST * drawn:
                raise DataError(
                    f"{settings['model']}: {drawn - done} of {drawn} images are copies of training slices, so that "
                    "--reject-copies leaves too few; train it on more patients or for fewer epochs"
                )
    return kept


def draw(network: nn.Module, settings: Settings, block: int) -> tuple[Tensor, ...]:
    """All images of one block, (BLOCK, 1, S, S) in [−1, 1], on the CPU; and their masks (BLOCK, S, S), if asked for."""
    # PyTorch's generator has 2³² seeds: from a place that the seed chooses they are counted on, so no two blocks share
    # one. A block is never cut, as the last of fewer random numbers would be others.
    first = int(np.random.SeedSequence(settings["seed"]).generate_state(1)[0])
    labels = torch.full((BLOCK,), label(settings))
    seed = (first + block) % 2**32
    if settings.get("masks"):
        return split_masks(training.generate(network, BLOCK, labels, seed=seed, sample=network.sample_channels))
    return (training.generate(network, BLOCK, labels, seed=seed),)


def write_image(path: Path, image: np.ndarray, settings: Settings) -> None:
    """One image (S, S) in [−1, 1]: a 16-bit PNG, a NIfTI of one slice that lies as ACDC's do, or a float32 array.

    The values of a mask, uint8, are written as they are.
    """
    mask = image.dtype == np.uint8
    if settings["format"] == "png":
        Image.fromarray(image if mask else to_grey(image, 65535).astype(np.uint16)).save(path, "PNG")
    elif settings["format"] == "nifti":
        voxels = (image if mask else to_grey(image, 4095).astype(np.int16)).T[:, :, None]  # (x, y, z)
        x, y, z = settings["spacing_mm"]
        nifti = nib.Nifti1Image(voxels, np.diag([-x, -y, z, 1.0]))  # ACDC's signs: x to the left, y to the back
        nifti.header.set_xyzt_units("mm")
        path.write_bytes(gzip.compress(nifti.to_bytes(), mtime=0))
    else:
        with path.open("wb") as file:
            np.save(file, image)


def read_image(path: Path, settings: Settings) -> Tensor:
    """The image (1, S, S) in [−1, 1] that `write_image` has written, with the steps of the format's greys."""
    if settings["format"] == "png":
        image = np.asarray(Image.open(path)) / (65535 / 2) - 1
    elif settings["format"] == "nifti":
        image = np.asarray(nib.load(path).dataobj)[:, :, 0].T / (4095 / 2) - 1
    else:
        image = read_npy(path)
    return torch.from_numpy(image.astype(np.float32))[None]


def to_grey(image: np.ndarray, highest: int) -> np.ndarray:
    """[−1, 1] → whole numbers 0 … highest."""
    return np.rint((image.astype(np.float64) + 1) / 2 * highest)


def write_tables(folder: Path, settings: Settings, copies: list[bool] | list[None]) -> None:
    """manifest.csv, one row an image, and datalist.json, as `monai.data.load_decathlon_datalist` reads it.

    Args:
        folder, settings: of the export.
        copies: whether each image is a copy of a training slice; None where that could not be told.
    """
    one_file = settings["format"] == "npz"
    files = [["samples.npz"] * settings["images"] if one_file else names for names in file_names(settings)]
    columns = {name: settings[name] for name in ("model", "group", "seed")}
    ends = {name: settings[name] for name in ("run", "weights_sha256")}
    places = dict(zip(("file", "mask"), files, strict=False))
    manifest = pd.DataFrame({**places, **columns, "index": range(settings["images"]), "copy": copies, **ends})
    write_whole(folder / "manifest.csv", lambda path: manifest.to_csv(path, index=False))

    listed = [{"image": image, "label": label(settings)} for image in dict.fromkeys(files[0])]
    if settings.get("masks") and not one_file:  # MONAI calls the mask of a segmentation its label
        pairs = zip(*files, strict=True)
        listed = [{"image": image, "label": mask, "group": label(settings)} for image, mask in pairs]
    datalist = {
        "name": f"{settings['run']} {settings['model']} {settings['group']}",
        "description": f"{settings['images']} synthetic cardiac MR slices, {settings['group']}, made by hcm-helpers; "
        "for research only, under the licence of the images that the model has learned from",
        "labels": {str(index): group for index, group in enumerate(GROUPS)},
        "numTraining": len(listed),
        "training": listed,
    }
    write_json(folder / "datalist.json", datalist)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, an empty dict where no export of ours has begun."""
    try:
        state = read_json(folder / STATE, "name another folder")
    except DataError:
        return {}
    return state if state.get("made_by") == "hcm sample" else {}


def write_state(folder: Path, settings: Settings, finished: bool, kept: list[int] | None = None) -> None:
    """Write export.json, by which an export of ours is known.

    Args:
        folder, settings, finished: of the export.
        kept: how many images of each block are no copies, of the blocks drawn so far; None where all are taken.
    """
    state = {"made_by": "hcm sample", "finished": finished, "settings": settings}
    if kept is not None:
        state |= {"drawn": BLOCK * len(kept), "rejected": BLOCK * len(kept) - sum(kept), "kept": kept}
    write_json(folder / STATE, state)


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
