"""The training loop on toy models whose every step is known beforehand, and the distance it may select by."""

import dataclasses
import math
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from scipy.stats import wasserstein_distance
from torch import nn

from hcm_helpers.acdc import DataError
from hcm_helpers.checkpoint import save_state
from hcm_helpers.devices import Replay
from hcm_helpers.fidelity import sliced_wasserstein
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.models.gan import GAN
from hcm_helpers.models.layers import Batch
from hcm_helpers.slices import Slices
from hcm_helpers.training import (
    fit,
    load_checkpoint,
    load_snapshots,
    update_average,
    validate,
)


def slices(n: int, image_size: int = 32) -> Slices:
    """Slices of noise; label and first pixel tell which is which."""
    images = torch.rand(n, 1, image_size, image_size, generator=torch.Generator().manual_seed(n)) * 2 - 1
    masks = torch.zeros(n, image_size, image_size, dtype=torch.uint8)
    return Slices(images, torch.arange(n) % 5, masks, pd.DataFrame({"patient": range(n)}), "0" * 64)


class Counter(nn.Module):
    """Counts its training steps in its one weight, which is also the value of all pixels of its samples."""

    def __init__(self, poison_at: int = -1):
        super().__init__()
        self.count = nn.Parameter(torch.zeros(()))
        self.poison_at = poison_at  # the step whose loss is NaN
        self.seen: list[Batch] = []

    def optimizers(self, learning_rate, betas):
        return {"counter": torch.optim.SGD(self.parameters(), lr=learning_rate)}

    def train_step(self, batch):
        self.seen.append(batch)
        with torch.no_grad():
            self.count += 1
        loss = torch.tensor(math.nan) if self.count.item() == self.poison_at else self.count.detach().clone()
        yield from ()  # no loss for the loop to go down
        return {"loss": loss, "half": loss / 2}

    def sample(self, n, labels=None, generator=None):
        return torch.full((n, 1, 32, 32), self.count.item())


class Scripted(Counter):
    """Takes the validation loss of each epoch from a script, at two steps an epoch."""

    def __init__(self, script=(), poison_at: int = -1):
        super().__init__(poison_at)
        self.script = script

    def validation_loss(self, batch, generator=None):
        # with ema_decay=0 the averaged weight is the count itself, and so names the epoch
        return torch.tensor(self.script[round(self.count.item()) // 2 - 1])


def train(model: nn.Module, folder, n: int = 8, **settings) -> pd.DataFrame:
    settings = {"epochs": 10, "batch_size": 4, "ema_decay": 0.0, "patience": 0} | settings
    return fit(model, slices(n), slices(3), folder, **settings)


# --- fit


def test_history_holds_a_row_an_epoch_and_the_mean_of_each_loss(tmp_path):
    history = train(Scripted(script=(3.0, 2.0, 1.0)), tmp_path, epochs=3)
    assert list(history.columns) == ["epoch", "seconds", "loss", "half", "validation"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].tolist() == [1.5, 3.5, 5.5]  # means of steps 1, 2 | 3, 4 | 5, 6
    assert history["half"].tolist() == [0.75, 1.75, 2.75]
    assert history["validation"].tolist() == [3, 2, 1]
    assert history["seconds"].is_monotonic_increasing
    written = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(written, history, check_dtype=False, rtol=1e-5)


def test_an_epoch_sees_each_slice_once_and_leaves_out_what_fills_no_batch(tmp_path):
    model = Scripted(script=(1.0,) * 2)
    train(model, tmp_path, n=11, batch_size=4, epochs=2)
    data = slices(11)
    assert [len(batch.images) for batch in model.seen] == [4, 4, 4, 4]
    for epoch in (model.seen[:2], model.seen[2:]):
        firsts = torch.cat([batch.images[:, 0, 0, 0] for batch in epoch])
        places = [data.images[:, 0, 0, 0].tolist().index(value) for value in firsts.tolist()]
        assert len(set(places)) == 8
        assert torch.cat([batch.labels for batch in epoch]).tolist() == data.labels[places].tolist()
    assert not torch.equal(model.seen[0].images, model.seen[2].images)  # shuffled anew


class Rated(Scripted):
    """Notes the learning rate of each step."""

    def optimizers(self, learning_rate, betas):
        self.mine = super().optimizers(learning_rate, betas)
        return self.mine

    def train_step(self, batch):
        self.rates = [*getattr(self, "rates", []), self.mine["counter"].param_groups[0]["lr"]]
        return super().train_step(batch)


def test_the_end_of_a_cooldown_is_kept_and_otherwise_the_best(tmp_path):
    for cooldown, patience, kept in ((0.5, 0, 4), (0.0, 0, 2), (0.5, 3, 2)):
        model = Scripted((3.0, 1.0, 2.0, 2.5))
        train(model, tmp_path / f"{cooldown} {patience}", epochs=4, cooldown=cooldown, patience=patience)
        assert model.count.item() == 2 * kept  # two steps an epoch


def test_the_learning_rate_falls_in_the_cooldown(tmp_path):
    model = Rated(script=(1.0,) * 10)
    train(model, tmp_path / "a", learning_rate=0.6, cooldown=0.3)
    assert model.rates[::2] == model.rates[1::2], "two steps an epoch"
    assert model.rates[::2] == pytest.approx([0.6] * 8 + [0.4, 0.2])
    plain = Rated(script=(1.0,) * 10)
    train(plain, tmp_path / "b", learning_rate=0.6)
    assert set(plain.rates) == {0.6}
    # what is resumed falls from the same height
    stopped = Rated(script=(1.0,) * 10)
    train(stopped, tmp_path / "c", learning_rate=0.6, cooldown=0.3)
    longer = Rated(script=(1.0,) * 20)
    longer.load_state_dict(stopped.state_dict())
    train(longer, tmp_path / "c", learning_rate=0.6, cooldown=0.3, epochs=12, resume=True)
    assert longer.rates[::2] == pytest.approx([0.6 * 2 / 3.6, 0.6 / 3.6])


def test_training_stops_when_patience_is_at_its_end(tmp_path):
    script = (5.0, 4.0, 3.0, 3.5, 3.5, 3.0, 9.0, 1.0)  # best in epoch 3; as good in epoch 6 is not better
    history = train(Scripted(script), tmp_path, patience=4)
    assert len(history) == 7
    assert len(train(Scripted(script), tmp_path / "longer", epochs=8, patience=5)) == 8
    assert len(train(Scripted(script), tmp_path / "never", epochs=8, patience=0)) == 8


def test_patience_counts_epochs_where_validation_is_rarer(tmp_path):
    script = (9.0, 1.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0)  # looked at in epochs 2, 4, 6, …
    history = train(Scripted(script), tmp_path, validate_every=2, patience=3)
    assert len(history) == 6  # four epochs after the best one: the first look at which three have passed
    assert history["validation"].isna().tolist() == [True, False] * 3


def test_the_last_epoch_is_always_looked_at(tmp_path):
    history = train(Scripted((9.0, 9.0, 9.0, 1.0, 7.0)), tmp_path, epochs=5, validate_every=4)
    assert history["validation"].dropna().tolist() == [1, 7]


def test_the_weights_of_the_best_epoch_are_kept_and_returned(tmp_path):
    model = Scripted((5.0, 1.0, 2.0, 1.5))
    train(model, tmp_path, epochs=4)
    assert model.count.item() == 4  # two steps an epoch, best in the second
    assert load_file(tmp_path / "weights.safetensors")["count"].item() == 4


def test_the_average_that_is_kept_is_the_one_of_the_formula(tmp_path):
    average = 0.0
    for step in range(1, 21):  # the weight after step k is k
        decay = min(0.8, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * step
    train(Counter(), tmp_path, n=40, batch_size=2, epochs=1, ema_decay=0.8)
    assert load_file(tmp_path / "weights.safetensors")["count"].item() == pytest.approx(average, rel=1e-5)


def test_update_average_moves_weights_and_copies_counters():
    average, model = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight += torch.tensor([1.0, 3.0])
    model.running_mean += 4
    model.num_batches_tracked += 7
    update_average(average, model, decay=0.75)
    assert average.weight.tolist() == [1.25, 1.75]
    assert average.running_mean.tolist() == [1, 1]
    assert average.num_batches_tracked == 7
    update_average(average, model, decay=0.0)
    assert average.weight.tolist() == [2, 4]


def test_without_a_validation_loss_the_samples_distance_selects(tmp_path):
    model = Counter()
    data = slices(3)
    history = train(model, tmp_path, epochs=2)
    expected = [sliced_wasserstein(torch.full((5, 1, 32, 32), value), data.images) for value in (2.0, 4.0)]
    np.testing.assert_allclose(history["validation"], expected, rtol=1e-4)
    assert model.count.item() == 2


def test_validation_hears_the_same_noise_each_time():
    class Noisy(Counter):
        def validation_loss(self, batch, generator=None):
            return torch.randn((), generator=generator)

    fabric = Fabric(accelerator="cpu", devices=1)
    assert validate(Noisy(), slices(7), fabric, 4) == validate(Noisy(), slices(7), fabric, 4)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"batch_size=32 is larger than the training set of 8 slices"):
        train(Scripted(), tmp_path / "new", batch_size=32)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("poison_at", "epoch"), [(1, 1), (6, 3)])
def test_a_loss_that_is_not_finite_stops_with_the_epoch_named(tmp_path, poison_at, epoch):
    model = Scripted((2.0, 1.0, 1.0), poison_at=poison_at)
    with pytest.raises(
        DataError, match=rf"Scripted: the loss is not finite at step {poison_at}, in epoch {epoch} .*learning_rate"
    ):
        train(model, tmp_path, checkpoint_seconds=0.0)
    assert (tmp_path / "weights.safetensors").exists() == (epoch > 1)
    if epoch > 1:
        assert load_checkpoint(tmp_path)["steps"] == poison_at - 1, "the last good one"


def test_a_validation_that_is_not_finite_stops_with_the_epoch_named(tmp_path):
    with pytest.raises(DataError, match="not finite in validation, in epoch 2"):
        train(Scripted((2.0, math.nan, 1.0)), tmp_path)


class Near(Counter):
    """Does best where its averaged weight is nearest to 5."""

    def validation_loss(self, batch, generator=None):
        return (self.count - 5).abs()


def test_of_several_averages_the_best_is_kept_at_each_look(tmp_path):
    """Without memory the average is the count, 2, 4, …; with a long one it lags behind, and is the nearer one later."""
    model = Near()
    history = train(model, tmp_path, epochs=6, ema_decay=[0.0, 0.8])
    lagging, expected = 0.0, []
    for step in range(1, 13):
        decay = min(0.8, (1 + step) / (10 + step))
        lagging = decay * lagging + (1 - decay) * step
        if step % 2 == 0:
            expected.append(min((abs(step - 5), 0.0), (abs(lagging - 5), 0.8)))
    assert history["validation"].tolist() == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert history["ema_decay"].tolist() == [decay for _, decay in expected]
    assert {0.0, 0.8} == set(history["ema_decay"])
    assert abs(model.count.item() - 5) == pytest.approx(min(expected)[0], rel=1e-5)  # the best of all is loaded


def test_snapshots_are_drawn_evenly_through_training_and_survive_a_resume(tmp_path):
    train(Scripted((1.0,) * 10), tmp_path, epochs=5, num_snapshots=5)
    model = Scripted((1.0,) * 10)
    train(model, tmp_path, epochs=10, num_snapshots=5, resume=True)
    assert all(torch.isin(batch.images, slices(8).images).all() for batch in model.seen), "drawn images are no data"
    snapshots = load_snapshots(tmp_path)
    assert list(snapshots) == [1, 2, 3, 4, 5, 6, 8, 10]  # five in five epochs, then every second
    assert all(images.shape == (8, 1, 32, 32) for images in snapshots.values())
    assert [images.mean().item() for images in snapshots.values()] == [2, 4, 6, 8, 10, 12, 16, 20]
    with pytest.raises(DataError, match=r"snapshots\.npz is missing"):
        load_snapshots(tmp_path / "none")


# --- resume


class InterruptedGAN(GAN):
    """Somebody presses Ctrl-C before step 14."""

    steps = 0

    def train_step(self, batch):
        self.steps += 1
        if self.steps == 14:
            raise KeyboardInterrupt
        return super().train_step(batch)


def gan(kind: type[GAN] = GAN) -> GAN:
    torch.manual_seed(3)
    return kind(32, latent_dim=8, width=8)


def test_interrupted_and_resumed_is_as_if_it_had_never_stopped(tmp_path):
    settings = {"n": 24, "batch_size": 8, "validate_every": 2, "ema_decay": 0.9, "seed": 5}
    whole = train(gan(), tmp_path / "whole", epochs=6, **settings)
    with pytest.raises(KeyboardInterrupt):  # in epoch 5, of three steps each; the last checkpoint was after step 13
        train(gan(InterruptedGAN), tmp_path / "parts", epochs=6, checkpoint_seconds=0.0, **settings)
    resumed = gan()
    parts = train(resumed, tmp_path / "parts", epochs=6, resume=True, **settings)

    columns = [column for column in whole.columns if column != "seconds"]
    assert parts[columns].equals(whole[columns])
    assert parts["seconds"].is_monotonic_increasing
    assert (tmp_path / "parts/weights.safetensors").read_bytes() == (
        tmp_path / "whole/weights.safetensors"
    ).read_bytes()
    last = [load_checkpoint(tmp_path / name) for name in ("parts", "whole")]
    for ours, theirs in ([state["model"] for state in last], [state["averages"][0] for state in last]):
        for a, b in zip(ours.values(), theirs.values(), strict=True):
            assert torch.equal(a, b)


class CtrlCGAN(InterruptedGAN):
    """Somebody presses Ctrl-C in the midst of step 13."""

    def train_step(self, batch):
        if self.steps == 12:
            signal.raise_signal(signal.SIGINT)
        return super().train_step(batch)


@pytest.fixture
def heard():
    """Ctrl-C is heard, which it is not in a process that a shell has put in the background."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_finishes_the_step_and_writes_the_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="the step was finished and the checkpoint written"):
        train(gan(CtrlCGAN), tmp_path, n=24, batch_size=8, epochs=6)
    assert load_checkpoint(tmp_path)["steps"] == 13
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_of_other_averages_is_refused(tmp_path):
    train(Scripted((1.0,) * 4), tmp_path, epochs=2)
    with pytest.raises(DataError, match=r"last\.safetensors is of a training that differs in ema_decay: delete"):
        train(Scripted((1.0,) * 4), tmp_path, epochs=4, ema_decay=[0.0, 0.5], resume=True)


def test_a_checkpoint_of_another_network_or_of_other_slices_is_refused(tmp_path):
    train(gan(), tmp_path, n=24, batch_size=8, epochs=2)
    with pytest.raises(DataError, match=r"last\.safetensors is of another network: generator\.\S+ is .*take the param"):
        train(GAN(32, latent_dim=8, width=16), tmp_path, n=24, batch_size=8, epochs=4, resume=True)
    larger = slices(24, 64)
    with pytest.raises(DataError, match=r"differs in image_size: delete its folder"):
        fit(GAN(64, latent_dim=8, width=8), larger, larger, tmp_path, batch_size=8, ema_decay=0.0, resume=True)
    fewer = dataclasses.replace(slices(24), labels=torch.zeros(24, dtype=torch.long))
    with pytest.raises(DataError, match=r"differs in groups: delete its folder"):
        fit(gan(), fewer, slices(3), tmp_path, batch_size=8, ema_decay=0.0, resume=True)
    assert load_checkpoint(tmp_path)["steps"] == 6, "what was there is kept"


def test_a_training_cut_off_between_two_looks_has_not_ended(tmp_path):
    script = (9.0, 1.0, 9.0, 2.0, 9.0, 0.5, 9.0, 3.0, 9.0, 3.0)  # looked at in epochs 2, 4, 6, …
    whole = train(Scripted(script), tmp_path / "whole", validate_every=2, patience=3)
    train(Scripted(script), tmp_path / "parts", validate_every=2, patience=3, epochs=5)
    state = load_checkpoint(tmp_path / "parts")
    state["history"][-1]["validation"] = math.nan  # as if it had been cut off there, and not ended with a look
    state["best"], state["best_epoch"] = 1.0, 2
    save_state(state, tmp_path / "parts/checkpoint/last.safetensors")
    parts = train(Scripted(script), tmp_path / "parts", validate_every=2, patience=3, resume=True)
    assert parts["epoch"].tolist() == whole["epoch"].tolist() == list(range(1, 11))


def test_resume_after_the_end_changes_nothing(tmp_path):
    script = (2.0, 1.0, 3.0, 3.0, 3.0, 3.0)
    first = train(Scripted(script), tmp_path, patience=2)
    assert len(first) == 4
    model = Scripted(script)
    again = train(model, tmp_path, patience=2, resume=True)
    assert again["validation"].tolist() == [2, 1, 3, 3]
    assert not model.seen  # not a step was taken
    assert model.count.item() == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU plays steps back; there is none")
def test_steps_that_a_gpu_plays_back_are_the_steps(tmp_path, monkeypatch):
    train, losses = slices(96), []
    for warm_up in (10**9, Replay.WARM_UP):
        monkeypatch.setattr(Replay, "WARM_UP", warm_up)
        torch.manual_seed(0)
        model = Diffusion(32, width=8, augment=0.5)
        folder = tmp_path / str(warm_up)
        history = fit(model, train, train, folder, epochs=4, batch_size=16, validate_every=2, cooldown=0.5)
        losses.append(history["loss"].tolist())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_without_resume_training_begins_anew(tmp_path):
    train(Scripted((1.0, 1.0)), tmp_path, epochs=2)
    history = train(Scripted((1.0, 1.0)), tmp_path, epochs=2)
    assert history["epoch"].tolist() == [1, 2]


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path):
    bytes_of = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(gan(), tmp_path / name, n=16, batch_size=8, epochs=1, seed=seed)
        bytes_of.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


# --- sliced Wasserstein distance


def test_equal_sets_have_distance_0_in_any_order():
    images = slices(20).images
    assert sliced_wasserstein(images, images) == 0
    assert sliced_wasserstein(images, images.flip(0)) == pytest.approx(0, abs=1e-6)


def test_of_one_pixel_it_is_the_wasserstein_distance_on_a_line():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 800), rng.normal(0.5, 2, 500)  # N and M differ
    ours = sliced_wasserstein(torch.tensor(x).view(-1, 1, 1, 1), torch.tensor(y).view(-1, 1, 1, 1), 4)
    assert ours == pytest.approx(wasserstein_distance(x, y), rel=0.01)


def test_of_a_shift_it_is_the_mean_length_of_its_projection():
    """E|⟨u, v⟩| for u uniform on the sphere of Rⁿ is ‖v‖ Γ(n/2) / (√π Γ((n+1)/2))."""
    x = slices(12, image_size=4).images
    shift = torch.zeros(1, 4, 4)
    shift[0, 1, 2] = 0.3
    n = 16
    expected = 0.3 * math.gamma(n / 2) / (math.sqrt(math.pi) * math.gamma((n + 1) / 2))
    assert sliced_wasserstein(x, x + shift, num_projections=20_000) == pytest.approx(expected, rel=0.02)


def test_it_is_symmetric_and_does_not_count_repetitions():
    x, y = slices(30).images, slices(20).images
    there = sliced_wasserstein(x, y)
    assert there == pytest.approx(sliced_wasserstein(y, x), rel=1e-6)
    assert there == pytest.approx(sliced_wasserstein(x.repeat(40, 1, 1, 1), y), rel=0.1)
    assert sliced_wasserstein(x, y - 0.5) > there


def test_a_batch_of_one_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"batch_size=1: .*choose 2 or more"):
        train(Scripted(), tmp_path / "new", batch_size=1)


def test_validation_takes_slices_of_all_patients(monkeypatch):
    seen = []

    class Watching(Counter):
        def validation_loss(self, batch, generator=None):
            seen.extend(batch.images[:, 0, 0, 0].tolist())
            return torch.zeros(())

    held_out = slices(1000)
    held_out.images = torch.arange(1000.0)[:, None, None, None].expand(1000, 1, 4, 4)
    validate(Watching(), held_out, Fabric(accelerator="cpu", devices=1), 64)
    assert len(set(seen)) == len(seen) == 256
    assert min(seen) == 0
    assert max(seen) > 990
