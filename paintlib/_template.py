"""The model and the tasks of a patch. It runs as it is, on made-up data; replace what is marked.

paintlib patch zero_shot.safetensors fine_tuned.safetensors --tasks FILE:tasks --dry-run
"""

import torch
from torch import nn

from paintlib import TaskLoss
from paintlib.patch import Setup


def network() -> nn.Module:
    """Return the module that both checkpoints fit; its own weights do not matter."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))  # <- your model


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return labelled images: the same ones in the same order each time, not augmented."""
    generator = torch.Generator().manual_seed(seed)  # <- a list, or DataLoader(shuffle=False)
    images = torch.randn(200, 6, generator=generator)
    return list(zip(images.split(50), images[:, :4].argmax(1).split(50), strict=True))


def tasks() -> Setup:
    """Return what `paintlib patch --tasks` asks for: validation images choose alpha."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network().to(device).eval()  # evaluation mode: no dropout

    def task(seed: int) -> TaskLoss:  # <- a head of its own for each task
        return TaskLoss(model, batches(seed), logits=lambda images: model(images.to(device)).cpu())

    return Setup(
        tasks={"keep": task(0), "repair": task(1)},  # what each end does well
        held_out={"keep": task(2), "repair": task(3)},  # images for the report, if you have any
        # after=lambda model: reestimate_batchnorm(model, train_batches),  # <- with BatchNorm
    )
