"""Do generated slices help to tell HCM from the rest? A small network learns it with and without them.

One half of every batch shows HCM, the other half the patients of all other groups. Only the HCM half changes from
one arm of the trial to the next. Every arm is judged on the same held-out patients, none of whom any model has seen.

A generative model has learned from *all* HCM training patients. Beside a few real ones its slices therefore carry
what other patients look like: such an arm says how well a model hands its patients on, not that slices come for
free. `Arm.leaks` marks it, and the table and the figure do.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm.auto import tqdm

from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.augment import jitter
from hcm_helpers.cutting import check_image_size
from hcm_helpers.devices import Replay, make_fabric
from hcm_helpers.models.layers import GroupNorm, adam, check_width
from hcm_helpers.segmentation import Block
from hcm_helpers.similarity import TITLES, html_with_legend, plain_arithmetic
from hcm_helpers.slices import Slices

HCM = GROUPS.index("HCM")
METRICS = ("AUC", "AP")
VERDICTS = ("better", "worse", "not told apart")
COLUMNS = ["patients", "arm", "model", "leaks", "level", "metric", "value", "low", "high"]
COLUMNS += ["gain", "gain_low", "gain_high", "verdict", "seeds", "n"]


@dataclass(frozen=True)
class Arm:
    """What shows HCM to the network in one arm of the trial.

    Args:
        patients: real HCM patients, drawn anew for each seed; 0 for all of the training set.
        model: whose generated slices take part; empty for none.
        factor: generated slices for each real one of these patients.
        alone: no real HCM slice takes part, the generated ones stand in their place.
        jittered: classical augmentation, `augment.jitter`, of every image of both halves.
    """

    patients: int = 0
    model: str = ""
    factor: int = 0
    alone: bool = False
    jittered: bool = False

    @property
    def title(self) -> str:
        """Such as "real + DCGAN ×3", without the patients."""
        generated = f"{TITLES[self.model]} ×{self.factor}" if self.model else ""
        words = [*([] if self.alone else ["real"]), *([generated] if generated else [])]
        title = " + ".join(words) + (" alone" if self.alone else "" if self.model else " only")
        return title + (", jittered" if self.jittered else "")

    @property
    def leaks(self) -> bool:
        """Whether its generated slices come from a model that has seen HCM patients whom the arm leaves out."""
        return bool(self.model and self.patients)

    @property
    def control(self) -> "Arm":
        """What it is measured against: the same real patients and nothing else."""
        return Arm(self.patients)


def arms(models: Iterable[str], patients: Sequence[int] = (2, 5, 10, 0), factors: Sequence[int] = (1, 3, 10)):
    """The trial's arms for each number of real HCM patients: list of Arm.

    Real slices only; with classical augmentation; with slices of each model, for each factor. Beside all patients
    (0) also the slices of each model alone, as many as there are real ones.
    """
    models = list(models)
    planned = []
    for number in patients:
        planned += [Arm(number), Arm(number, jittered=True)]
        planned += [Arm(number, model, factor) for model in models for factor in factors]
        planned += [] if number else [Arm(0, model, 1, alone=True) for model in models]
    return planned


def lacks(arm: Arm, train: Slices, samples: Mapping[str, Tensor]) -> str:
    """What an arm needs and there is not, in a sentence; empty where it can be run."""
    sizes = sorted(train.manifest.loc[(train.labels == HCM).numpy(), "patient"].value_counts(), reverse=True)
    if arm.patients >= len(sizes):
        return f"patients={arm.patients}: there are {len(sizes)} HCM training patients; choose fewer, or 0 for all"
    if arm.model and arm.model not in samples:
        return f"{arm.title}: there are no slices of {arm.model}; run its notebook first"
    needed = arm.factor * sum(sizes[: arm.patients or None])  # those with most slices may be drawn
    if arm.model and needed > len(samples[arm.model]):
        return (
            f"{arm.title}: needs {needed} generated slices and there are {len(samples[arm.model])}; "
            f"lower the factor, or generate more by {arm.model}.num_samples"
        )
    return ""


class Classifier(nn.Module):
    """HCM or not: a small residual network (He et al. 2016, arXiv 1512.03385) with group normalisation.

    Args:
        image_size: height and width of the image: 32, 64, 128 or 256.
        width: channels at a quarter of the size; twice as many at each smaller one.

    Shapes: (B, 1, image_size, image_size) in [−1, 1] → logit (B,), positive for HCM.
    """

    def __init__(self, image_size: int = 64, width: int = 16):
        super().__init__()
        check_image_size(image_size)
        check_width(width)
        size, channels = image_size // 4, width
        layers = [nn.PixelUnshuffle(2), nn.Conv2d(4, width, 3, stride=2, padding=1), Block(width, width, 0.0)]
        while size > 4:
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
                Block(2 * channels, 2 * channels, 0.0),
            ]
            size, channels = size // 2, 2 * channels  # size × size → size/2 × size/2
        self.layers = nn.Sequential(*layers, GroupNorm(8, channels), nn.SiLU())
        self.out = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean((2, 3)))[:, 0]


def training_slices(arm: Arm, train: Slices, samples: Mapping[str, Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """The slices of one arm: those that count as HCM, and those of the rest.

    The seed draws the patients and the generated slices, and does so alike for every arm: five patients include
    the two, and the slices of a factor those of a smaller one.

    Raises:
        DataError: see `lacks`.
    """
    if reason := lacks(arm, train, samples):
        raise DataError(reason)
    is_hcm = (train.labels == HCM).numpy()
    owners = train.manifest["patient"].to_numpy()
    names = np.random.default_rng([seed, 0]).permutation(np.unique(owners[is_hcm]))
    hcm = train.images[is_hcm & np.isin(owners, names[: arm.patients or None])]
    if arm.model:
        images = samples[arm.model].cpu()
        drawn = np.random.default_rng([seed, 1]).permutation(len(images))[: arm.factor * len(hcm)]
        hcm = images[drawn] if arm.alone else torch.cat([hcm, images[drawn]])
    return hcm, train.images[~is_hcm]


@plain_arithmetic()  # shared among cores, so small a network learns no faster
def fit(
    network: Classifier,
    hcm: Tensor,
    rest: Tensor,
    *,
    jittered: bool = False,
    steps: int = 200,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Classifier:
    """Train a network to tell two sets of slices apart, on batches of which either is one half, and return it.

    A fixed number of steps of Adam with a learning rate that falls to 0 along a cosine, and no look at held-out
    patients on the way. The same seed gives the same batches of the rest, whatever shows HCM.

    Args:
        network: as it was born; draws nothing while it learns.
        hcm, rest: (N, 1, S, S) and (M, 1, S, S) in [−1, 1].
        jittered: turn, shift, scale and retone every image of a batch.
        steps: batches.
        batch_size: images in one, an even number.
        learning_rate: of Adam at the beginning.
        seed: of batches and jitter.

    Raises:
        DataError: an odd batch_size, or a loss that is not finite.
    """
    if batch_size < 2 or batch_size % 2:
        raise DataError(f"batch_size={batch_size}: one half of a batch shows HCM, so choose an even number")
    fabric = make_fabric()
    optimizer = adam(network.parameters(), learning_rate, (0.9, 0.999))
    # Not by fabric.setup: it guards backward passes by a flag that threads would share.
    network = fabric.to_device(network.train()).to(memory_format=torch.channels_last)
    hcm, rest = fabric.to_device(hcm), fabric.to_device(rest)
    y = fabric.to_device(torch.arange(batch_size) < batch_size // 2).float()
    tones = torch.Generator(fabric.device).manual_seed(seed)

    def train_step(x: Tensor) -> dict[str, Tensor]:
        x = (jitter(x, generator=tones) if jittered else x).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            loss = F.binary_cross_entropy_with_logits(network(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        return {"loss": loss}

    take_step = Replay(train_step, [optimizer], fabric.device, [tones])
    schedule = CosineAnnealingLR(optimizer, steps)
    for x in batches(hcm, rest, steps, batch_size, seed):
        losses = take_step(x)
        schedule.step()
    if not losses["loss"].isfinite():
        raise DataError(f"the classifier's loss is not finite; lower learning_rate={learning_rate}")
    return network.eval()


def batches(hcm: Tensor, rest: Tensor, steps: int, batch_size: int, seed: int) -> Iterable[Tensor]:
    """Batches (B, 1, S, S): first half HCM, second half the rest, each image drawn with equal chance."""
    of_rest, of_hcm = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        halves = [
            images[torch.randint(len(images), (batch_size // 2,), generator=generator).to(images.device)]
            for images, generator in ((hcm, of_hcm), (rest, of_rest))
        ]
        yield torch.cat(halves)


@torch.no_grad()
@plain_arithmetic()
def logits(network: Classifier, images: Tensor, batch_size: int = 256) -> np.ndarray:
    """The network's logit of each image (N, 1, S, S): float64 (N,), positive for HCM."""
    device = next(network.parameters()).device
    with make_fabric().autocast():
        values = [network(part.to(device)).float().cpu() for part in images.split(batch_size)]
    return torch.cat(values).double().numpy()


def auc_and_ap(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve, and average precision.

    AUC is the chance that a positive scores higher than a negative, a tie counting one half; 0.5 is guessing.
    AP is the mean, over the positives, of the precision at the threshold of their score; guessing gives their share.

    Args:
        scores: (N,).
        positive: (N,) bool, at least one of each kind.
        weights: how often each counts, (N,) or a row a draw (D, N); None: once.

    Returns:
        (2,) or (2, D): AUC and AP.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of equal scores the last: there lie the thresholds
    found, false = (np.cumsum(weights[..., order] * kind[order], axis=-1)[..., ends] for kind in (positive, ~positive))
    new_found, new_false = (np.diff(count, axis=-1, prepend=0) for count in (found, false))
    auc = (new_false * (found - new_found / 2)).sum(-1) / (found[..., -1] * false[..., -1])
    ap = (new_found * found / np.maximum(found + false, 1e-12)).sum(-1) / found[..., -1]
    return np.stack([auc, ap])


def compare(
    planned: Sequence[Arm],
    train: Slices,
    test: Slices,
    samples: Mapping[str, Tensor],
    *,
    seeds: int = 3,
    seed: int = 0,
    num_bootstrap: int = 1000,
    width: int = 16,
    **settings,
) -> pd.DataFrame:
    """Train every arm, judge it on the test patients, and set it beside real slices only.

    Args:
        planned: such as `arms` gives them; for each number of patients `Arm(patients)` must be among them.
        train, test: slices of all groups, as `load_slices` gives them.
        samples: model → generated HCM slices (N, 1, S, S) in [−1, 1].
        seeds: trainings of an arm, each with patients, generated slices, weights and batches of its own.
        seed: the first of them.
        num_bootstrap: draws for an interval, see `score`.
        width: of the `Classifier`.
        settings: steps, batch_size and learning_rate of `fit`.

    Returns:
        As `score`.

    Raises:
        DataError: a split without HCM or without others, a patient in both splits, images of another size or
            outside [−1, 1], or an arm that `lacks` something.
    """
    check(planned, train, test, samples, seeds)
    jobs = [(arm, number) for arm in planned for number in range(seed, seed + seeds)]
    networks = []
    for _, number in jobs:
        torch.manual_seed(number)
        networks.append(Classifier(train.image_size, width))

    def run(job: tuple[Arm, int], network: Classifier) -> np.ndarray:
        arm, number = job
        slices = training_slices(arm, train, samples, number)
        return logits(fit(network, *slices, jittered=arm.jittered, seed=number, **settings), test.images)

    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    with plain_arithmetic(), ThreadPoolExecutor(workers) as pool:  # a core a network
        quiet = bool(os.environ.get("HCM_HEADLESS"))
        rows = list(tqdm(pool.map(run, jobs, networks), total=len(jobs), desc="trainings", disable=quiet))
    values = {arm: np.stack(rows[i * seeds : (i + 1) * seeds]) for i, arm in enumerate(planned)}
    return score(values, test, num_bootstrap, seed)


def score(values: Mapping[Arm, np.ndarray], test: Slices, num_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """AUC and average precision of every arm, by slice and by patient, and its gain over real slices only.

    A patient's score is the mean logit of its slices. An interval holds 95 % of bootstrap draws. A draw takes HCM
    patients, other patients and seeds with replacement, each patient with all slices, and the same draw serves all
    arms: the interval of a gain is that of paired differences. It counts the chance of who is tested and of how a
    training went, but not that the generative models would come out otherwise if they were trained again.

    Args:
        values: arm → logits (seeds, N) of the test slices.
        test: these slices.
        num_bootstrap: number of draws.
        seed: of the draws.

    Returns:
        One row an arm, level and metric: patients (0 for all), arm (its title), model ("–" for none), leaks, level
        ("slice" or "patient"), metric ("AUC" or "AP"), value (mean over the seeds), low, high, gain, gain_low,
        gain_high, verdict (one of VERDICTS, "–" for real only), seeds, n. Intervals are NaN where HCM or the rest
        has one patient.
    """
    owners, first = np.unique(test.manifest["patient"], return_index=True)
    owner = np.searchsorted(owners, test.manifest["patient"])
    slice_positive = (test.labels == HCM).numpy()
    positive = slice_positive[first]
    rng = np.random.default_rng(seed)
    num_seeds = len(next(iter(values.values())))
    draws = np.zeros((num_bootstrap, len(owners)))
    for kind in (positive, ~positive):
        draws[:, kind] = rng.multinomial(kind.sum(), np.full(kind.sum(), 1 / kind.sum()), size=num_bootstrap)
    seed_shares = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_bootstrap) / num_seeds
    known = min(positive.sum(), (~positive).sum()) > 1

    def interval(drawn: np.ndarray) -> np.ndarray:
        return np.quantile(drawn, [0.025, 0.975], axis=-1) if known else np.full((2, len(METRICS)), np.nan)

    rows = []
    for level in ("slice", "patient"):
        truth, weights = (slice_positive, draws[:, owner]) if level == "slice" else (positive, draws)
        points, drawn = {}, {}
        for arm, scores in values.items():
            if level == "patient":
                scores = np.stack([np.bincount(owner, row) / np.bincount(owner) for row in scores])
            points[arm] = np.mean([auc_and_ap(row, truth) for row in scores], axis=0)
            each = np.stack([auc_and_ap(row, truth, weights) for row in scores])  # (seeds, metrics, draws)
            drawn[arm] = np.einsum("smd,ds->md", each, seed_shares)
        for arm in values:
            value, (low, high) = points[arm], interval(drawn[arm])
            gain, (gain_low, gain_high) = value - points[arm.control], interval(drawn[arm] - drawn[arm.control])
            for i, metric in enumerate(METRICS):
                verdict = VERDICTS[0 if gain_low[i] > 0 else 1 if gain_high[i] < 0 else 2]
                row = [arm.patients, arm.title, arm.model or "–", arm.leaks, level, metric, value[i], low[i], high[i]]
                row += [gain[i], gain_low[i], gain_high[i], "–" if arm == arm.control else verdict]
                rows.append([*row, num_seeds, len(truth)])
    return pd.DataFrame(rows, columns=COLUMNS)


def render(table: pd.DataFrame, metric: str = "AUC", level: str = "patient") -> pd.DataFrame:
    """`score`'s table as text for one metric and level: a row an arm, two columns a number of HCM patients.

    Returns:
        Columns (patients, metric or "gain"); cells such as "0.88 [0.72, 1.00]", a dagger where an arm leaks, or "–".
    """
    rows = table[(table["metric"] == metric) & (table["level"] == level)]
    cells = {}
    for row in rows.itertuples():
        mark, place = (" †" if row.leaks else ""), patients_in_words(row.patients)
        numbers = {
            metric: (row.value, row.low, row.high, "z.2f"),
            "gain": (row.gain, row.gain_low, row.gain_high, "+z.2f"),
        }
        for column, (value, low, high, digits) in numbers.items():
            interval = "" if pd.isna(low) else f" [{low:{digits}}, {high:{digits}}]"
            cells[row.arm, place, column] = f"{value:{digits}}{interval}{mark}"
        if row.verdict == "–":  # real only gains nothing over itself
            cells[row.arm, place, "gain"] = "–"
    columns = [(place, c) for place in map(patients_in_words, rows["patients"].unique()) for c in (metric, "gain")]
    names = list(dict.fromkeys(rows["arm"]))
    return pd.DataFrame(
        [[cells.get((name, *column), "–") for column in columns] for name in names],
        index=pd.Index(names, name="arm"),
        columns=pd.MultiIndex.from_tuples(columns, names=["real HCM patients", None]),
    )


def render_html(table: pd.DataFrame) -> str:
    """`render` as an HTML table with its legend."""
    return html_with_legend(render(table), legend(table))


def legend(table: pd.DataFrame) -> str:
    """How `render` is to be read."""
    return (
        "A small network learns to tell HCM from the other groups; area under the ROC curve on the held-out "
        f"patients ({table.loc[table['level'] == 'patient', 'n'].max()}), mean of {table['seeds'].max()} trainings. "
        "Gain: over real slices only of as many HCM patients. In brackets the 95 % bootstrap interval: patients and "
        "trainings drawn, the same for both arms. A gain whose interval holds 0 has not been shown; of twenty "
        "intervals about one misses by chance. †: the generator has seen all HCM training patients, more than "
        "this arm has real slices of."
    )


def by_patient(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `score`'s table that a report tells: AUC by patient."""
    return table[(table["metric"] == "AUC") & (table["level"] == "patient")]


def in_full(row) -> str:
    """The arm of a row of that table with its patients: real only, 2 HCM patients."""
    return f"{row.arm}, {patients_in_words(row.patients)}"


def patients_in_words(number: int) -> str:
    """0 → all HCM patients, 2 → 2 HCM patients."""
    return f"{number or 'all'} HCM patients"


def check(planned: Sequence[Arm], train: Slices, test: Slices, samples: Mapping[str, Tensor], seeds: int = 1) -> None:
    """Raise the DataError that `compare` names, before anything is trained."""
    if seeds < 1:
        raise DataError(f"seeds={seeds}: each arm is trained once a seed, so choose 1 or more")
    for name, slices in (("train", train), ("test", test)):
        for kind, there in (("with HCM", slices.labels == HCM), ("of another group", slices.labels != HCM)):
            if not there.any():
                raise DataError(f"{name}: holds no patient {kind}, so nothing can be told apart; prepare more patients")
    both = sorted(set(train.manifest["patient"]) & set(test.manifest["patient"]))
    if both:
        raise DataError(f"test: {both[0]} is a training patient as well; load both splits from one prepared folder")
    shape = train.images.shape[1:]
    for name, images in (("train", train.images), ("test", test.images), *samples.items()):
        if images.ndim != 4 or images.shape[1:] != shape:
            raise DataError(f"{name}: images have shape {tuple(images.shape)}, not (N, {', '.join(map(str, shape))})")
        if len(images) and not images.abs().max() <= 1.001:  # a NaN compares as false
            raise DataError(f"{name}: images must be finite and in [−1, 1]")
    for arm in planned:
        if arm.control not in planned:
            raise DataError(
                f"arms: {arm.title} with patients={arm.patients} has no Arm({arm.patients}) beside it; add it"
            )
        if reason := lacks(arm, train, samples):
            raise DataError(reason)
