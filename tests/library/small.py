"""Two tasks and a network small enough to test with."""

import torch
from torch import nn


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4))
    return layers.to(dtype).eval()


def batches(seed: int, count: int = 30, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 6, generator=generator, dtype=dtype)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return list(zip(images.split(7), labels.split(7), strict=True))
