"""Ten evaluations an image against 250 ancestral steps of the same network: `python benchmarks/few_steps.py runs/NAME`.

The run's diffusion model draws 500 slices with HCM in each way, and the judge of `hcm ablate` compares them with the
training slices. "From the same start" walks down the part of the chain that lies below the level at which the model's
own sampler begins; "from the end of the chain" begins in nearly pure noise, as the paper does.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from hcm_helpers.ablation import Judge
from hcm_helpers.acdc import GROUPS
from hcm_helpers.export import load_model
from hcm_helpers.fidelity import kernel_distance
from hcm_helpers.models.diffusion import Diffusion
from hcm_helpers.models.samplers import ancestral
from hcm_helpers.slices import load_slices
from hcm_helpers.training import generate

DRAWN, FEW, MANY = 500, 10, 250


class FromTheSameStart(nn.Module):
    """Ancestral steps down the chain's levels below that of `learn_start`."""

    def __init__(self, model: Diffusion):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        model = self.model
        targets = model.targets(n, labels, generator) if model.num_classes else None
        below = model.sigmas[model.sigmas <= model.start_sigma].double()
        times = [round(len(below) * i / MANY) - 1 for i in range(MANY, 0, -1)]
        levels = torch.cat([below[times], below.new_zeros(1)])
        x = model.start(n, generator, targets, levels[0].item())
        return ancestral(lambda x, sigma: model.denoise(x, sigma, targets), x, levels, generator).clamp(-1, 1)[:, :1]


def main() -> None:
    if len(sys.argv) != 2:
        print("skipped: name a run that has a diffusion model, as in `python benchmarks/few_steps.py runs/NAME`")
        return
    folder = Path(sys.argv[1])
    judge, (model, _) = Judge(folder), load_model(folder / "diffusion", "diffusion")
    model.eval().to(memory_format=torch.channels_last)
    labels = torch.full((DRAWN,), GROUPS.index("HCM"))

    def tell(name: str, images: Tensor) -> None:
        value, low, high = kernel_distance(judge.features, judge.encoder.features(images))
        print(f"  {name:<58}KID {value:.3f} [{low:.3f}, {high:.3f}]", flush=True)

    print(f"{folder.name}: {DRAWN} slices of the diffusion model against {len(judge.real)} training slices with HCM")
    tell("real slices of the test patients", load_slices(folder / "slices", "test", ["HCM"]).images)
    for model.sampler in ("dpmpp_2m", "ddim"):
        model.sampling_steps = FEW
        tell(f"{model.sampler}, {FEW} evaluations", generate(model, DRAWN, labels))
    tell(f"ancestral, {MANY} steps, from the same start", generate(FromTheSameStart(model), DRAWN, labels))
    model.sampler, model.sampling_steps = "ancestral", MANY
    tell(f"ancestral, {MANY} steps, from the end of the chain", generate(model, DRAWN, labels))


if __name__ == "__main__":
    main()
