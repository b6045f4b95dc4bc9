"""What each part of a model's recipe buys: the model's notebook, run short with one parameter changed at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from torch import Tensor

from hcm_helpers import anatomy, features, fidelity, memorisation, run, segmentation
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.execute import Parameters, default_jobs, execute_at_once
from hcm_helpers.files import clone_or_wheel, write_whole
from hcm_helpers.report import clock
from hcm_helpers.run import find_step
from hcm_helpers.slices import load_slices
from hcm_helpers.training import load_samples, load_weights

AS_IT_IS = "as it is"

# Model: what is changed: parameters of its notebook. The weight of the gradient penalty is that of 64×64 in batches of
# 16, by the rule beside `run.EQUATION_5`. A variant that the profile has already is left out.
CONVOLUTIONAL = {
    "no augmentation": {"augment": False},
    "no average of weights": {"ema_decay": 0.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "gradient penalty": {"gradient_penalty": 0.05},
    "hinge, spectral norm": {"loss": "hinge", "spectral_norm": True},
}
UNPRICED = {"no copy penalty": {"copy_penalty": 0.0}}
VARIANTS: dict[str, dict[str, Parameters]] = {
    "vae": {
        "no augmentation": {"augment": False},
        "no average of weights": {"ema_decay": 0.0},
        "no residual blocks": {"num_blocks": 0},
        "no KL warm-up": {"kl_warmup": 0},
        "no cooldown": {"cooldown": 0.0},
        "32 numbers": {"latent_dim": 32},
        "one normal, no map": {"prior_components": 1},
        "map of ten normals": {"prior_components": 10},
    },
    "gan": {
        "no average of weights": {"ema_decay": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "gradient penalty": {"gradient_penalty": 0.05},
    }
    | UNPRICED,
    "dcgan": CONVOLUTIONAL | UNPRICED,
    "acgan": CONVOLUTIONAL
    | UNPRICED
    | {"label smoothing": {"label_smoothing": 0.1}}
    | {"cosine classifier": {"classifier": "cosine"}}
    | {"class weight 0.2": {"class_weight": 0.2}, "class weight 1": {"class_weight": 1.0}}
    | {"class of drawn slices": {"classify_fakes": True}, "class of real slices only": {"classify_fakes": False}},
    "infogan": CONVOLUTIONAL | UNPRICED | {"no mutual information": {"mutual_information_weight": 0.0}},
    "diffusion": {
        "no augmentation": {"augment": 0.0},
        "no average of weights": {"ema_decay": [0.0]},
        "recipe epsilon": {"recipe": "epsilon"},
        "all groups": {"groups": list(GROUPS)},
        "HCM only": {"groups": ["HCM"]},
        "told nothing": {"conditional": False},
        "no dropout": {"dropout": 0.0},
        "adam": {"optimizer": "adam", "learning_rate": 2e-3},  # twice as much is too much for it
        "no cooldown": {"cooldown": 0.0},
        "start in pure noise": {"gaussian_start": False},
        "with masks": {"with_masks": True},
    },
}
# Column of the table: its head
WALLS = {"wall_to_hcm": "wall to HCM, mm", "wall_to_nor": "to NOR, mm"}
MEASURED = clone_or_wheel("docs/ablation", "ablation_tables")  # tables of profile cpu on ACDC
SHORT = {"diffusion": {"compare_steps": [5, 10]}, "acgan": {"judge_epochs": 1}, "infogan": {"segmenter_epochs": 1}}


def ablate(
    model: str,
    name: str,
    epochs: int | None = None,
    seeds: int = 1,
    only: Iterable[str] = (),
    jobs: int | None = None,
    num_samples: int = 500,
    *,
    home: str | Path = ".",
    echo: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Train a model as it is and with one part changed at a time, and judge each, into runs/NAME/ablation/MODEL.csv.

    Each training is the model's notebook with the run's profile; notebook 08's networks judge its images.

    Args:
        model: a key of VARIANTS.
        name: of a run whose slices and networks are there, from notebooks 01 and 08.
        epochs: of each training; None: a third of those of the run's profile.
        seeds: trainings of each variant, with the seeds 0 to seeds − 1.
        only: the variants to train beside "as it is"; none named: all.
        jobs: trainings at once, as in `run.run_series`.
        num_samples: images drawn of each.
        home: the folder with runs/ in it.
        echo: prints one line.

    Returns:
        A row a variant and seed: KID with its interval over images, precision, recall, share of plausible hearts,
        the distance in mm of their mean wall from that of HCM and of NOR, share of copies, seconds of training.

    Raises:
        DataError: an unknown model or variant, or a run without slices or networks; nothing has been started.
        NotebookError: a training failed.
    """
    if model not in VARIANTS:
        raise run.unknown("model", model, VARIANTS)
    only = list(only)
    for variant in only:
        if variant not in VARIANTS[model]:
            raise run.unknown("variant", variant, VARIANTS[model])
    folder, notebook = Path(home).resolve() / "runs" / run.run_name(name), find_step(model)
    judge = Judge(folder)
    profile = run.earlier_record(folder).get("profile", "quick")
    base = run.plan(profile, folder, 0, [notebook], {})[notebook] | SHORT.get(model, {})
    base |= {"epochs": epochs or max(1, base["epochs"] // 3), "num_samples": num_samples}

    changes = {key: values for key, values in VARIANTS[model].items() if not only or key in only}
    chosen = {AS_IT_IS: {}} | {key: values for key, values in changes.items() if base | values != base}
    calls, places = {}, {}
    for seed in range(seeds):
        for variant, change in chosen.items():
            label = f"{variant}, seed {seed}"
            places[label] = place = folder / "ablation" / model / label.replace(",", "").replace(" ", "_")
            (place / "notebooks").mkdir(parents=True, exist_ok=True)
            if not (place / "slices").exists():
                (place / "slices").symlink_to(folder / "slices")
            parameters = base | change | {"run_dir": str(place), "seed": seed}
            calls[label] = run.NOTEBOOKS / f"{notebook}.ipynb", place / "notebooks", parameters
    rows: dict[str, dict] = {}

    def ended(label: str, state: str, seconds: float) -> None:
        if state != "done":
            return
        variant, seed = label.rsplit(", seed ", 1)
        history = pd.read_csv(places[label] / model / "history.csv")
        rows[label] = {"variant": variant, "seed": int(seed), "epochs": base["epochs"]}
        rows[label] |= judge(places[label] / model) | {"seconds_training": history["seconds"].iloc[-1]}
        echo(f"{label:<32}KID {rows[label]['KID']:.2f}{clock(seconds):>9}")

    jobs = default_jobs() if jobs is None else jobs
    execute_at_once(calls, jobs, lambda label: None, ended)
    table = pd.DataFrame([rows[label] for label in calls])
    write_whole(folder / "ablation" / f"{model}.csv", lambda path: table.to_csv(path, index=False, float_format="%.5g"))
    return table


class Judge:
    """The networks of notebook 08 and the training slices with HCM of a run, to judge the samples in a folder.

    The walls are compared with those of the training slices with HCM and of the held-out ones of NOR.

    Raises:
        DataError: the run has no slices or no networks.
    """

    def __init__(self, folder: Path):
        self.real = load_slices(folder / "slices", "train", ["HCM"])
        networks = folder / "evaluation" / f"networks-{self.real.fingerprint[:8]}"
        if not networks.is_dir():
            raise DataError(f"{networks} is missing; run notebooks 01 and 08 first, by `hcm run --run {folder.name}`")
        size = self.real.image_size
        self.encoder = load_weights(features.Encoder(size), networks / "encoder")
        self.segmenter = load_weights(segmentation.Segmenter(size), networks / "segmenter")
        self.features = self.encoder.features(self.real.images)
        held_out = memorisation.held_out_slices(folder / "slices", ["HCM"])
        normal = load_slices(folder / "slices", "test", ["NOR"]).images
        real = {"wall_to_hcm": self.real.images, "wall_to_nor": normal}
        self.walls = {name: mean_walls(self.hearts(images)) for name, images in real.items()}
        self.threshold = memorisation.copy_threshold(memorisation.nearest_by_pixels(held_out.images, self.real)[0])

    def hearts(self, images: Tensor) -> pd.DataFrame:
        """`anatomy.measure_all` of the masks that the segmenter draws into the images."""
        return anatomy.measure_all(segmentation.segment(self.segmenter, images), self.real.pixel_mm)

    def __call__(self, folder: Path) -> dict[str, float]:
        images, labels = load_samples(folder)
        images = images[(labels == GROUPS.index("HCM")) | (labels == -1)]
        drawn = self.encoder.features(images)
        near = fidelity.neighbourhoods(self.features, drawn)
        hearts = self.hearts(images)
        walls = {name: apart(mean_walls(hearts), real) for name, real in self.walls.items()}
        kid = dict(zip(("KID", "low", "high"), fidelity.kernel_distance(self.features, drawn), strict=True))
        shares = {measure: near[measure].mean().item() for measure in ("precision", "recall")}
        copies = memorisation.nearest_by_pixels(images, self.real)[0] > self.threshold
        return kid | shares | {"plausible": hearts["plausible"].mean(), **walls, "copies": copies.mean()}


def mean_walls(hearts: pd.DataFrame) -> pd.Series:
    """The mean thickness of the wall in mm, of the plausible hearts among those measured."""
    return hearts.loc[hearts["plausible"], "mean_wall_mm"].dropna()


def apart(a: pd.Series, b: pd.Series) -> float:
    """Wasserstein distance of two sets of walls in mm, NaN where one has too few hearts to tell."""
    return anatomy.wasserstein_mm(a, b) if min(len(a), len(b)) >= anatomy.FEWEST else math.nan


def kept_table(model: str, folder: str | Path) -> pd.DataFrame:
    """The table that `ablate` wrote into a run's folder, or where it has none, the one measured on ACDC.

    Args:
        model: a key of VARIANTS.
        folder: of the run.
    """
    own = Path(folder) / "ablation" / f"{model}.csv"
    return pd.read_csv(own if own.is_file() else MEASURED / f"{model}.csv")


def render(table: pd.DataFrame) -> pd.DataFrame:
    """The table to read, a row a variant, "as it is" on top.

    One seed: KID with its interval over the images. Several: mean and range over the seeds.
    """
    several = table["seed"].nunique() > 1
    rows = {}
    for variant, group in table.groupby("variant", sort=False):
        low, high = (group["KID"].min(), group["KID"].max()) if several else group[["low", "high"]].iloc[0]
        rows[variant] = {
            "KID": f"{group['KID'].mean():.2f} [{low:.2f}, {high:.2f}]",
            "precision": f"{group['precision'].mean():.2f}",
            "recall": f"{group['recall'].mean():.2f}",
            "plausible, %": f"{100 * group['plausible'].mean():.0f}",
            **{head: f"{group[name].mean():.1f}".replace("nan", "–") for name, head in WALLS.items() if name in group},
            "copies, %": f"{100 * group['copies'].mean():.1f}",
            "training, s": f"{group['seconds_training'].mean():.0f}",
        }
    return pd.DataFrame(rows).T
