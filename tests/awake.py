"""A network that has something to say."""

import torch


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """The zeroed layers filled, so that everything reaches the output."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
