"""Utility: scores and intervals known by hand, what each arm is trained on, and a signal that must be found."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.metrics import average_precision_score, roc_auc_score

from hcm_helpers import figures, utility
from hcm_helpers.acdc import GROUPS, DataError
from hcm_helpers.slices import Slices
from hcm_helpers.utility import Arm, arms, auc_and_ap, batches, compare, fit, lacks, logits, score, training_slices

QUICK = {"steps": 40, "batch_size": 16, "width": 8, "learning_rate": 3e-3, "num_bootstrap": 200}


def noise(n, seed, size=32):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def with_signal(images):
    """A bright square, the disease of these tests."""
    images = images.clone()
    images[:, :, 12:20, 12:20] = 0.9
    return images


def make_slices(patients, prefix, seed=0):
    """Slices of patients (group, how many slices), of noise."""
    rows = [(f"{prefix}{i}", group) for i, (group, n) in enumerate(patients) for _ in range(n)]
    manifest = pd.DataFrame(rows, columns=["patient", "group"])
    labels = torch.tensor([GROUPS.index(group) for group in manifest["group"]])
    masks = torch.zeros(len(rows), 32, 32, dtype=torch.uint8)
    return Slices(noise(len(rows), seed), labels, masks, manifest, "fingerprint")


@pytest.fixture
def train():
    """Four HCM patients with 3, 4, 5 and 6 slices, and four others."""
    return make_slices(
        [*(("HCM", n) for n in (3, 4, 5, 6)), *((group, 5) for group in ("NOR", "DCM", "RV", "MINF"))], "a"
    )


@pytest.fixture
def test():
    return make_slices([("HCM", 4), ("NOR", 4), ("HCM", 6), ("DCM", 5), ("RV", 4)], "b", seed=1)


def samples(n=60):
    return {"dcgan": noise(n, 2), "vae": noise(n, 3)}


def row(table, level="patient", metric="AUC", arm=1):
    """One row of a table, of the second arm unless told otherwise."""
    title = list(dict.fromkeys(table["arm"]))[arm]
    chosen = (table["level"] == level) & (table["metric"] == metric) & (table["arm"] == title)
    return table[chosen].iloc[0]


# Scores


def test_auc_and_ap_by_hand():
    """Pairs won: 3 over 2 and 1, 2 over 1, and half of the tie: 3.5 of 4. Precision 1 at 3, 2/3 at 2."""
    scores, positive = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert auc_and_ap(scores, positive) == pytest.approx([3.5 / 4, (1 + 2 / 3) / 2])
    assert auc_and_ap(-scores, positive)[0] == pytest.approx(0.5 / 4)
    assert auc_and_ap(np.zeros(4), np.array([True, False, False, False])) == pytest.approx([0.5, 0.25])


def test_weights_are_repetitions_and_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(8, size=40).astype(float), rng.random(40) < 0.3
    weights = rng.integers(4, size=(5, 40))
    found = auc_and_ap(scores, positive, weights)
    for column, repeats in zip(found.T, weights, strict=True):
        y, s = np.repeat(positive, repeats), np.repeat(scores, repeats)
        assert column == pytest.approx([roc_auc_score(y, s), average_precision_score(y, s)])


def test_the_score_of_a_patient_is_the_mean_of_its_slices():
    """Means 2 and 0.5 of the HCM patients, 1 and 0 of the others; sums would rank 2 and 1 against 4 and 0."""
    test = make_slices([("HCM", 1), ("NOR", 4), ("HCM", 2), ("DCM", 1)], "b")
    table = score({Arm(): np.array([[2.0, 1.5, 0.5, 1.0, 1.0, 3.0, -2.0, 0.0]])}, test)
    assert row(table, "slice", arm=0)["value"] == pytest.approx((5 + 5 + 0) / 15)
    assert row(table, "patient", arm=0)["value"] == pytest.approx(3 / 4)
    assert list(table["n"]) == [8, 8, 4, 4]


# Intervals


def perfect(test):
    return (test.labels == utility.HCM).double().numpy()[None]


def test_equal_arms_gain_exactly_nothing(test):
    values = np.random.default_rng(3).normal(size=(2, len(test)))
    found = row(score({Arm(): values, Arm(jittered=True): values}, test))
    assert (found["gain"], found["gain_low"], found["gain_high"], found["verdict"]) == (0, 0, 0, "not told apart")
    assert found["low"] < found["value"] < found["high"]


def test_a_gain_in_every_draw_is_better_and_a_loss_worse(test):
    good, bad = perfect(test), -perfect(test)
    for control, arm, gain, verdict in ((bad, good, 1, "better"), (good, bad, -1, "worse")):
        table = score({Arm(): control, Arm(jittered=True): arm}, test)
        found = row(table)
        assert (found["gain"], found["gain_low"], found["gain_high"], found["verdict"]) == (gain, gain, gain, verdict)
        assert set(table.loc[table["arm"] == "real only", "verdict"]) == {"–"}


def test_patients_are_drawn_with_all_their_slices():
    """Of two HCM patients one lies above and one below all others: a draw gives 1, ½ or 0 with 1 : 2 : 1."""
    for n in (1, 30):
        test = make_slices([("HCM", n), ("HCM", n), ("NOR", n), ("DCM", n)], "b")
        values = np.repeat([2.0, -2.0, 0.5, 0.0], n)[None]
        for level in ("slice", "patient"):
            found = row(score({Arm(): values}, test), level, arm=0)
            assert (found["value"], found["low"], found["high"]) == (0.5, 0, 1)


def test_seeds_are_drawn_too(test):
    """A training that ranks all right and one that ranks all wrong: ½ on average, and either by chance."""
    found = row(score({Arm(): np.concatenate([perfect(test), -perfect(test)])}, test), arm=0)
    assert (found["value"], found["low"], found["high"], found["seeds"]) == (0.5, 0, 1, 2)


def test_one_patient_gives_no_interval_and_no_verdict():
    test = make_slices([("HCM", 5), ("NOR", 5), ("DCM", 5)], "b")
    table = score({Arm(): -perfect(test), Arm(jittered=True): perfect(test)}, test)
    assert table[["low", "high", "gain_low", "gain_high"]].isna().all(axis=None)
    assert row(table)["gain"] == 1
    assert set(table["verdict"]) == {"–", "not told apart"}


# What an arm is trained on


def test_no_arm_is_trained_on_other_than_training_patients_and_generated_slices(train):
    generated = samples()
    known = {
        image.numpy().tobytes(): ("real", group)
        for image, group in zip(train.images, train.manifest["group"], strict=True)
    }
    known |= {image.numpy().tobytes(): (name, "HCM") for name in generated for image in generated[name]}
    for arm in arms(generated, [1, 2, 0], [1, 3]):
        for seed in range(3):
            hcm, rest = training_slices(arm, train, generated, seed)
            sources = [known[image.numpy().tobytes()] for image in hcm]
            real = sources.count(("real", "HCM"))
            made = sources.count((arm.model, "HCM"))
            assert real + made == len(hcm) == len({image.numpy().tobytes() for image in hcm})
            if arm.alone:
                assert (real, made) == (0, 18)
            else:
                assert made == arm.factor * real
            assert torch.equal(rest, train.images[train.labels != utility.HCM])


def test_patients_are_whole_nested_and_drawn_anew_for_each_seed(train):
    owners = {
        image.numpy().tobytes(): name for image, name in zip(train.images, train.manifest["patient"], strict=True)
    }
    sets = {}
    for seed in range(6):
        for number in (1, 2, 3, 0):
            hcm, _ = training_slices(Arm(number), train, {}, seed)
            names = [owners[image.numpy().tobytes()] for image in hcm]
            sets[seed, number] = set(names)
            assert len(names) == (train.manifest["patient"].isin(sets[seed, number])).sum()
        assert sets[seed, 1] < sets[seed, 2] < sets[seed, 3] < sets[seed, 0] == {"a0", "a1", "a2", "a3"}
    assert len({frozenset(sets[seed, 2]) for seed in range(6)}) > 1


def test_either_kind_is_half_of_every_batch():
    hcm, rest = torch.ones(3, 1, 32, 32), -torch.ones(500, 1, 32, 32)
    for batch in batches(hcm, rest, steps=5, batch_size=16, seed=0):
        assert batch.shape == (16, 1, 32, 32)
        assert (batch[:8] == 1).all()
        assert (batch[8:] == -1).all()


def test_the_rest_is_drawn_alike_whatever_shows_hcm():
    rest = noise(50, 5)
    few, many = (list(batches(noise(n, 6), rest, 4, 8, seed=1)) for n in (3, 300))
    assert all(torch.equal(a[4:], b[4:]) for a, b in zip(few, many, strict=True))


def test_the_trial_has_every_arm_and_marks_what_leaks():
    planned = arms(["dcgan"], [2, 0], [1, 3])
    assert [(arm.patients, arm.title, arm.leaks) for arm in planned] == [
        (2, "real only", False),
        (2, "real only, jittered", False),
        (2, "real + DCGAN ×1", True),
        (2, "real + DCGAN ×3", True),
        (0, "real only", False),
        (0, "real only, jittered", False),
        (0, "real + DCGAN ×1", False),
        (0, "real + DCGAN ×3", False),
        (0, "DCGAN ×1 alone", False),
    ]
    assert {arm.control for arm in planned} == {Arm(2), Arm(0)}


# Training


def test_slices_that_carry_the_signal_help_and_noise_does_not(train, test):
    """The real HCM slices do not show the disease, the held-out patients do, and so do the slices of one model."""
    is_hcm = (test.labels == utility.HCM)[:, None, None, None]
    test = replace(test, images=torch.where(is_hcm, with_signal(test.images), test.images))
    made = {"dcgan": with_signal(noise(60, 2)), "vae": noise(60, 3)}
    planned = [Arm(), Arm(0, "dcgan", 3), Arm(0, "vae", 3), Arm(0, "dcgan", 1, alone=True)]
    table = compare(planned, train, test, made, seeds=2, **QUICK)
    signal, chance, alone = (row(table, "slice", arm=i) for i in (1, 2, 3))
    assert min(signal["value"], alone["value"]) > 0.95
    assert signal["verdict"] == alone["verdict"] == "better"
    assert chance["value"] < 0.8
    assert chance["verdict"] != "better"


def test_a_jittered_training_learns_as_well():
    network = fit(
        utility.Classifier(32, 8),
        with_signal(noise(20, 0)),
        noise(20, 1),
        jittered=True,
        steps=60,
        batch_size=16,
        learning_rate=3e-3,
    )
    assert logits(network, with_signal(noise(20, 2))).min() > logits(network, noise(20, 3)).max()


def test_every_arm_is_trained_once_a_seed(train, test, monkeypatch):
    calls = []

    def record(network, hcm, rest, *, jittered, seed, **_):
        calls.append((len(hcm), len(rest), jittered, seed))
        return network

    monkeypatch.setattr(utility, "fit", record)
    compare([Arm(), Arm(jittered=True)], train, test, {}, seeds=2, seed=5, **QUICK)
    assert sorted(calls) == [(18, 20, False, 5), (18, 20, False, 6), (18, 20, True, 5), (18, 20, True, 6)]


def test_the_same_seed_gives_the_same_table_on_one_core_or_two(train, test):
    planned = [Arm(2), Arm(2, jittered=True), Arm(2, "vae", 1)]
    tables, threads = [], torch.get_num_threads()
    for seed, cores in ((0, 1), (0, 2), (5, 1)):
        torch.set_num_threads(cores)
        tables.append(compare(planned, train, test, samples(), seeds=2, seed=seed, **QUICK | {"steps": 3}))
    torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["value"].equals(tables[2]["value"])


# Bad input


def drop(slices, hcm):
    keep = (slices.labels == utility.HCM) != hcm
    manifest = slices.manifest[keep.numpy()].reset_index(drop=True)
    return replace(slices, images=slices.images[keep], labels=slices.labels[keep], manifest=manifest)


def test_bad_input_is_one_sentence(train, test, monkeypatch):
    monkeypatch.setattr(utility, "fit", lambda *_, **__: pytest.fail("a network was trained"))
    good, planned = samples(), [Arm(), Arm(0, "vae", 1)]
    broken = good["vae"].clone()
    broken[7, 0, 3, 3] = float("nan")
    for sentence, arguments in {
        "test: holds no patient with HCM": (planned, train, drop(test, hcm=True), good),
        "test: holds no patient of another group": (planned, train, drop(test, hcm=False), good),
        "train: holds no patient with HCM": (planned, drop(train, hcm=True), test, good),
        "test: a0 is a training patient as well": (
            planned,
            train,
            replace(test, manifest=test.manifest.replace("b0", "a0")),
            good,
        ),
        r"vae: images have shape \(9, 1, 64, 64\), not \(N, 1, 32, 32\)": (
            planned,
            train,
            test,
            {"vae": noise(9, 0, 64)},
        ),
        r"vae: images must be finite and in \[−1, 1\]": (planned, train, test, {"vae": broken}),
        r"vae: images must be finite": (planned, train, test, {"vae": 2 * good["vae"]}),
        "VAE ×4: needs 72 generated slices and there are 60; lower the factor": (
            [Arm(), Arm(0, "vae", 4)],
            train,
            test,
            good,
        ),
        "there are no slices of gan": ([Arm(), Arm(0, "gan", 1)], train, test, good),
        "patients=4: there are 4 HCM training patients": ([Arm(4)], train, test, good),
        r"has no Arm\(2\) beside it": ([Arm(), Arm(2, "vae", 1)], train, test, good),
    }.items():
        with pytest.raises(DataError, match=sentence):
            compare(*arguments, **QUICK)
    with pytest.raises(DataError, match="seeds=0"):
        compare(planned, train, test, good, seeds=0)


def test_samples_suffice_for_whichever_patients_are_drawn(train):
    assert not lacks(Arm(2, "vae", 5), train, samples(55))  # the largest two have 5 and 6 slices
    assert "needs 55 generated slices and there are 54" in lacks(Arm(2, "vae", 5), train, samples(54))


@pytest.mark.parametrize("batch_size", [0, 7])
def test_a_batch_has_two_halves(batch_size):
    with pytest.raises(DataError, match="choose an even number"):
        fit(utility.Classifier(32, 8), noise(4, 0), noise(4, 1), batch_size=batch_size)


def test_a_loss_that_is_not_finite_is_told():
    with pytest.raises(DataError, match="lower learning_rate=1e\\+30"):
        fit(utility.Classifier(32, 8), noise(4, 0), noise(4, 1), steps=4, batch_size=4, learning_rate=1e30)


# Table and figure


@pytest.fixture
def table(test):
    planned = arms(["vae"], [2, 0], [1])
    rng = np.random.default_rng(0)
    return score({arm: perfect(test) + rng.normal(0, 0.7, (2, len(test))) for arm in planned}, test, 100)


def test_the_table_as_text(table):
    wide = utility.render(table)
    assert list(wide.index) == ["real only", "real only, jittered", "real + VAE ×1", "VAE ×1 alone"]
    assert list(wide.columns.unique(0)) == ["2 HCM patients", "all HCM patients"]
    expected = table[(table["patients"] == 2) & (table["metric"] == "AUC") & (table["level"] == "patient")].iloc[2]
    cell = f"{expected['value']:.2f} [{expected['low']:.2f}, {expected['high']:.2f}] †"
    assert wide.loc["real + VAE ×1", ("2 HCM patients", "AUC")] == cell
    assert "†" not in wide.loc["real + VAE ×1", ("all HCM patients", "gain")]
    assert wide.loc["real only", ("2 HCM patients", "gain")] == "–"
    assert wide.loc["VAE ×1 alone", ("2 HCM patients", "AUC")] == "–"
    assert "(5), mean of 2 trainings" in utility.render_html(table)


def test_the_figure_marks_gains_and_leaks(table, tmp_path):
    table.to_csv(tmp_path / "utility.csv", index=False)
    figure = figures.utility_figure(pd.read_csv(tmp_path / "utility.csv"))
    few, every = figure.axes[:2]
    assert [axes.get_title() for axes in (few, every)] == ["2 HCM patients", "all HCM patients"]
    assert [label.get_text() for label in few.get_yticklabels()] == list(utility.render(table).index)
    arms = [[line for line in axes.lines if line.get_linestyle() == "None"] for axes in figure.axes]
    assert [len(lines) for lines in arms] == [3, 4, 2, 3]
    assert [line.get_markerfacecolor() == "white" for line in arms[0]] == [False, False, True]
    rows = table[(table["metric"] == "AUC") & (table["level"] == "patient")]
    for lines, patients, column in ((arms[0], 2, "value"), (arms[3], 0, "gain")):
        shown = rows[(rows["patients"] == patients) & ((column == "value") | (rows["verdict"] != "–"))]
        assert [line.get_xdata()[0] for line in lines] == pytest.approx(list(shown[column]))


def test_trainings_in_threads_do_not_disturb_each_other_in_bf16(monkeypatch):
    """Fabric's own guard of the backward pass is one flag for all threads: the second one failed by it."""
    monkeypatch.setattr(utility, "make_fabric", lambda: Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    images, networks = noise(40, 0), [utility.Classifier(32, 8) for _ in range(4)]
    before = [network.out.weight.clone() for network in networks]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda network: fit(network, images[:20], images[20:], steps=15), networks))
    assert not any(torch.equal(network.out.weight, old) for network, old in zip(networks, before, strict=True))
