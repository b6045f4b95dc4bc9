"""Our diffusion model against MONAI's and diffusers', at equal numbers of parameters on the same slices.

    python benchmarks/diffusion.py                         speed only, on a phantom
    python benchmarks/diffusion.py runs/NAME [MINUTES]     and, with MINUTES, the KID after so long a training of each

Needs `pip install -e .[bench]`. Speed is images per second in a training step and in a network evaluation, as the
peers' examples run them (float32, their layout) and once more with channels_last and, where this processor computes it
in hardware, bf16; a peer is set beside the narrowest of ours that has at least as many parameters. With MINUTES, each
is trained for so long on HCM, on one core, two at a time, and draws 200 slices: ours as in profile cpu, theirs by DDIM
in 50 steps, for their thousand would take hours. KID is by the encoder that notebook 08 has trained in this run.

The peers' recipes are those of their own examples: MONAI's 2d_ddpm tutorial (linear schedule, Adam 2.5e-5), diffusers'
examples/unconditional_image_generation (linear schedule, AdamW 1e-4, β (0.95, 0.999), weight decay 1e-6, EMA). Its
network is there twice: with the example's six levels, an eighth as wide, and with the three levels and widths of ours.
"""

import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hcm_helpers.acdc import GROUPS
from hcm_helpers.devices import make_fabric
from hcm_helpers.features import Encoder, with_targets
from hcm_helpers.fidelity import kernel_distance
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.models.layers import Batch, count_parameters
from hcm_helpers.parallel import take_step
from hcm_helpers.phantom import write_phantom
from hcm_helpers.slices import Slices, load_slices, prepare
from hcm_helpers.training import generate, load_weights, update_average

BATCH, DRAWN, ROUNDS, STEPS = 32, 200, 3, 4
HCM = GROUPS.index("HCM")


class Peer:
    """A network of another library with the schedule, the optimizer and the average of its example."""

    def __init__(
        self, name: str, network: nn.Module, schedulers: tuple, optimizer: torch.optim.Optimizer, decay: float
    ):
        self.name, self.network, self.optimizer, self.decay = name, network, optimizer, decay
        self.scheduler, self.sampler = schedulers
        self.average = deepcopy(network).eval()
        self.steps = 0

    def predict(self, network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        found = network(x, t)
        return getattr(found, "sample", found)

    def train_step(self, x: Tensor) -> None:
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        noisy = self.scheduler.add_noise(original_samples=x, noise=noise, timesteps=t)
        loss = F.mse_loss(self.predict(self.network, noisy, t).float(), noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        if self.decay:
            update_average(self.average, self.network, min(self.decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> None:
        self.predict(self.average, x, torch.full((len(x),), 500))

    @torch.no_grad()
    def draw(self, n: int, size: int) -> Tensor:
        network = self.average if self.decay else self.network.eval()
        images = []
        for _ in range(0, n, 100):
            x = torch.randn(100, 1, size, size)
            self.sampler.set_timesteps(50)
            for t in self.sampler.timesteps:
                after = self.sampler.step(self.predict(network, x, t.expand(100)).float(), t, x)
                x = after[0] if isinstance(after, tuple) else after.prev_sample
            images.append(x.clamp(-1, 1))
        return torch.cat(images)[:n]


def monai() -> Peer:
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

    settings = {"channels": (32, 64, 64), "attention_levels": (False, True, True), "num_res_blocks": 1}
    settings |= {"num_head_channels": 64, "norm_num_groups": 32}
    network = DiffusionModelUNet(spatial_dims=2, in_channels=1, out_channels=1, **settings)
    schedulers = tuple(kind(num_train_timesteps=1000) for kind in (DDPMScheduler, DDIMScheduler))
    return Peer("MONAI", network, schedulers, torch.optim.Adam(network.parameters(), 2.5e-5), 0.0)


def diffusers(size: int, widths: tuple[int, ...] = (16, 16, 32, 32, 40, 40)) -> Peer:
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    attentive = len(widths) - 2  # the example's level of attention, the last but one
    network = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if i == attentive else "DownBlock2D" for i in range(len(widths))),
        up_block_types=tuple("AttnUpBlock2D" if i == 1 else "UpBlock2D" for i in range(len(widths))),
        norm_num_groups=8,
    )
    schedulers = tuple(kind(num_train_timesteps=1000) for kind in (DDPMScheduler, DDIMScheduler))
    settings = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6}
    name = f"diffusers, {len(widths)} levels"
    return Peer(name, network, schedulers, torch.optim.AdamW(network.parameters(), **settings), 0.9999)


class Ours:
    """The model, the optimizers and the shorter average of profile cpu, whose width is 32."""

    def __init__(self, size: int, sigma_data: float, width: int = 32):
        self.name = f"ours, width {width}"
        fabric = make_fabric()
        told = {"num_classes": len(GROUPS), "dropout": 0.2}  # phase and position, as there is one group
        told |= {"sigma_data": sigma_data, "P_mean": -0.8 + math.log(size / 64)}  # notebook 07's
        model = Diffusion(size, width, augment=0.3, sampling_steps=10, **told)
        self.network = model.to(memory_format=torch.channels_last)
        self.average = deepcopy(self.network).eval()
        self.optimizers, self.fabric, self.steps = self.network.optimizers(4e-3, (0.9, 0.999)), fabric, 0

    def train_step(self, x: Tensor, targets: Tensor | None = None) -> None:
        targets = torch.full((len(x),), HCM) if targets is None else targets
        x = x.contiguous(memory_format=torch.channels_last)
        take_step(self.network, Batch(x, targets), self.optimizers, self.fabric)
        self.steps += 1
        update_average(self.average, self.network, min(0.98, (1 + self.steps) / (10 + self.steps)))

    def cool(self, share: float) -> None:
        """The learning rate after this share of the time: it falls to 0 in a straight line, as `fit` lets it."""
        for group in (group for optimizer in self.optimizers.values() for group in optimizer.param_groups):
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - share)

    @torch.no_grad()
    def evaluate(self, x: Tensor) -> None:
        with self.fabric.autocast():
            self.average.denoise(x.contiguous(memory_format=torch.channels_last), torch.tensor(1.0))

    def draw(self, n: int, size: int) -> Tensor:
        return generate(self.average, n)


def images_per_second(work: Callable[[Tensor], None], x: Tensor, fast: bool) -> float:
    """Images a second of STEPS calls; `fast`: in the precision that our own training takes."""
    context = make_fabric().autocast() if fast else torch.autocast("cpu", enabled=False)
    with context:
        start = time.perf_counter()
        for _ in range(STEPS):
            work(x)
    return STEPS * len(x) / (time.perf_counter() - start)


def ceiling() -> float:
    """The most multiply-adds a second, counted as two, that a convolution of our network reaches here by itself."""
    best = 0.0
    for channels, side in ((32, 32), (64, 16), (64, 32), (128, 16)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(64, channels, side, side).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), make_fabric().autocast():
            layer(x)
            start = time.perf_counter()
            for _ in range(10):
                layer(x)
        best = max(best, 10 * 64 * 2 * 9 * channels**2 * side**2 / (time.perf_counter() - start))
    return best


def compare_speed(x: Tensor) -> None:
    size, works = x.shape[-1], ("train_step", "evaluate")
    ours = [Ours(size, 0.4, width) for width in (32, 40)]
    peers = [monai(), diffusers(size), diffusers(size, (32, 64, 64))]
    print(f"{size}×{size}, batches of {BATCH}, {torch.get_num_threads()} threads, {make_fabric()._precision.precision}")
    for fast in (False, True):
        speeds = {(who.name, work): [] for who in (*ours, *peers) for work in works}
        if fast:
            x = x.contiguous(memory_format=torch.channels_last)
            for who in peers:
                who.network.to(memory_format=torch.channels_last)
                who.average.to(memory_format=torch.channels_last)
        for _ in range(ROUNDS + 1):  # in turn, and the first is to warm up
            for who in (*ours, *peers):
                for work in works:
                    speeds[who.name, work].append(images_per_second(getattr(who, work), x, fast))
        best = {key: sorted(values[1:])[ROUNDS // 2] for key, values in speeds.items()}
        print("all in our precision and layout" if fast else "the peers as their examples run them")
        for who in (*ours, *peers):
            rates = [best[who.name, work] for work in works]
            line = f"  {who.name:<22}{count_parameters(who.network) / 1e6:.2f} M parameters   "
            line += f"training {rates[0]:6.1f} images/s   evaluation {rates[1]:6.1f} images/s"
            if who in peers:
                match = next(o for o in ours if count_parameters(o.network) >= count_parameters(who.network))
                ratio = [best[match.name, work] / rate for work, rate in zip(works, rates, strict=True)]
                line += f"   {match.name}: {ratio[0]:.1f} and {ratio[1]:.1f} times as fast"
            print(line)

    top = ceiling()
    for work, name in zip(works, ("training step", "evaluation"), strict=True):
        counter = FlopCounterMode(display=False)
        with counter:
            getattr(ours[0], work)(x)
        rate = counter.get_total_flops() / BATCH * best[ours[0].name, work]
        print(
            f"  {name}: {rate / 1e9:.0f} of {top / 1e9:.0f} GFLOP/s that a convolution reaches here, {rate / top:.0%}"
        )


def quality(name: str, run: Path, minutes: float) -> str:
    """Train one of CONTENDERS for so long on one core, and say how far its images are from the training slices."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train = with_targets(load_slices(run / "slices", "train", ["HCM"]))
    (folder,) = run.glob("evaluation/networks-*/encoder")
    encoder = load_weights(Encoder(train.image_size), folder).eval()
    who = CONTENDERS[name](train)
    who.network.train()
    start = time.perf_counter()
    while (share := (time.perf_counter() - start) / (60 * minutes)) < 1:
        rows = torch.randint(len(train), (BATCH,))
        if name == "ours":
            who.cool(share)
            who.train_step(train.images[rows], train.labels[rows])
        else:
            who.train_step(train.images[rows])
    images = who.draw(DRAWN, train.image_size)
    value, low, high = kernel_distance(encoder.features(train.images), encoder.features(images))
    return f"{who.name}: {who.steps} steps in {minutes:g} min on one core, KID {value:.2f} [{low:.2f}, {high:.2f}]"


def ours_for(train: Slices) -> Ours:
    who = Ours(train.image_size, train.images.std().item())
    for model in (who.network, who.average):
        model.learn_start(train.images, train.labels)
    return who


CONTENDERS = {
    "ours": ours_for,
    "MONAI": lambda train: monai(),
    "diffusers": lambda train: diffusers(train.image_size),
}


def compare_quality(run: Path, minutes: float) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(quality, CONTENDERS, repeat(run), repeat(minutes)):
            print(line, flush=True)


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        if run:
            slices = load_slices(run / "slices", "train")
        else:
            slices = prepare(write_phantom(Path(folder) / "phantom", 5), Path(folder) / "slices", 64)
        compare_speed(slices.images[:BATCH])
    if len(sys.argv) > 2:
        compare_quality(run, float(sys.argv[2]))


if __name__ == "__main__":
    main()
