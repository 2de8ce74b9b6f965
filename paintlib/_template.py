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

    def logits(images: torch.Tensor) -> torch.Tensor:  # <- a head of its own for each task
        return model(images.to(device)).cpu()  # type: ignore[no-any-return]

    return Setup(
        tasks={
            "keep": TaskLoss(model, batches(0), logits),  # what the zero-shot weights do well
            "repair": TaskLoss(model, batches(1), logits),  # what the fine-tuning was for
        },
        classes={"keep": 4, "repair": 4},
        # on images that take no part in the choice; leave it out where there are none
        held_out={
            "keep": TaskLoss(model, batches(2), logits),
            "repair": TaskLoss(model, batches(3), logits),
        },
        # after=lambda model: reestimate_batchnorm(model, train_batches),  # <- with BatchNorm
    )
