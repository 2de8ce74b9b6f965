"""Measure how fast this machine does what the profile `paper` consists of.

    python benchmarks/throughput.py [--quick] [--threads N] [--note TEXT]

Images per second of CLIP ViT-B/32's image tower with random weights, forward and in training, on
the GPU if there is one, and of decoding JPEG files on one core; and the bandwidth of writing a
point of a path into a model beside that of copying an end there. Writes
`results/bench/throughput-DEVICE.json`, which the page "Running the paper's experiment" reads.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import functional as V
from tqdm import tqdm

from experiment import cost, results
from paintlib import WeightPath

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 100
PICTURE = (500, 375)  # width and height of a typical photograph of ImageNet
DECODED = 32  # pictures in one timed call
LAYER = 4096  # width of the layers of the models whose weights are interpolated: 17 M numbers each
SIZES = {"100 M": 6, "1 B": 60}  # layers of these


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small batches, one repeat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--note", default="", help="kept in the file, say what else was running")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "bench")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    repeats = 1 if options.quick else (10 if kind == "cuda" else 3)
    cases = _cases(torch.device(kind), options.quick)
    rows = []
    for what, prepare in tqdm(cases, "throughput", unit="case", leave=False):
        call = prepare()
        call()  # the first call allocates and tunes
        seconds = [machine.timed(call, kind) for _ in range(repeats)]
        rates = [what["batch"] / second for second in seconds]
        rows.append(what | machine.spread(rates))
        del call
    record = {
        **machine.describe(kind, options.threads, options.note),
        "model": cost.MODEL,
        "images_per_second": rows,
        "interpolation": _bandwidths(torch.device(kind), options.quick, repeats),
    }
    path = options.folder / f"throughput-{machine.slug(kind)}.json"
    results.write_json(path, record)
    for row in rows:
        print(
            f"{row['work']:8} {row['precision']:5} batch {row['batch']:4}: {row['median']:9.1f} "
            f"images/s ({row['low']:.1f} to {row['high']:.1f})"
        )
    for row in record["interpolation"]:
        print(
            f"set_ of {row['numbers']:>5} in {row['precision']}: {row['GB/s']['median']:.1f} GB/s, "
            f"{row['ratio']['median']:.2f} of copy_"
        )
    print(f"written: {os.path.relpath(path)}")


def _cases(
    device: torch.device, quick: bool
) -> list[tuple[dict[str, Any], Callable[[], Callable[[], object]]]]:
    """Return what is measured: a label, and what sets up the call to time."""
    forward: dict[str, torch.dtype | None] = {"fp32": None}
    training = dict(forward)
    batches = {"forward": [4, 16], "training": [4, 16]}
    if device.type == "cuda":  # the precisions that the workflow uses on a GPU
        batches = {"forward": [64, 256, 1024], "training": [128, 256]}
        forward["fp16"] = torch.float16
        if torch.cuda.is_bf16_supported(including_emulation=False):
            training["bf16"] = torch.bfloat16
    cases: list[tuple[dict[str, Any], Callable[[], Callable[[], object]]]] = [
        ({"work": "decode", "precision": "uint8", "batch": DECODED}, _decoding)
    ]
    for work, dtypes, prepare in (
        ("forward", forward, _forward),
        ("training", training, _training),
    ):
        for name, dtype in dtypes.items():
            for batch in batches[work][:1] if quick else batches[work]:
                what = {"work": work, "precision": name, "batch": batch}
                cases.append((what, functools.partial(prepare, device, batch, dtype)))
    return cases


def _bandwidths(device: torch.device, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Time `set_` against a copy of an end; the ratio is that of the bytes moved in a second.

    Interpolation reads two numbers and writes one, a copy reads one and writes one.
    """
    rows = []
    for size, layers in list(SIZES.items())[: 1 if quick else None]:
        for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
            with torch.device("meta"):
                shape = nn.Sequential(
                    *(nn.Linear(LAYER, LAYER, dtype=dtype) for _ in range(layers))
                )
            model = shape.to_empty(device=device)
            ends = [  # which take no memory
                {
                    key: torch.tensor(float(i), dtype=dtype, device=device).expand(tensor.shape)
                    for key, tensor in model.state_dict().items()
                }
                for i in range(2)
            ]
            path = WeightPath(*ends)
            alphas = iter(np.linspace(0.1, 0.9, repeats + 1).tolist())
            rounds = machine.alternately(
                [
                    functools.partial(_interpolate, path, model, alphas),
                    functools.partial(path.set_, model, 0.0),
                ],
                repeats,
                device.type,
            )
            total = sum(p.numel() * p.element_size() for p in model.parameters())
            row: dict[str, Any] = {"numbers": size, "precision": name}
            row |= {"GB/s": machine.spread([3 * total / a / 1e9 for a, _ in rounds])}
            rows.append(row | {"ratio": machine.spread([(3 / a) / (2 / b) for a, b in rounds])})
            del model, path
    return rows


def _interpolate(path: WeightPath, model: nn.Module, alphas: Iterator[float]) -> None:
    path.set_(model, next(alphas))


def _tower(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    visual: nn.Module = open_clip.CLIP(**open_clip.get_model_config(cost.MODEL)).visual
    return visual.to(device)


def _forward(device: torch.device, batch: int, dtype: torch.dtype | None) -> Callable[[], object]:
    visual, pictures = _tower(device).eval(), torch.randn(batch, 3, 224, 224, device=device)

    def call() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype is not None),
        ):
            visual(pictures)

    return call


def _training(device: torch.device, batch: int, dtype: torch.dtype | None) -> Callable[[], object]:
    visual, pictures = _tower(device).train(), torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    head = 100 * F.normalize(torch.randn(CLASSES, 512, device=device), dim=-1)
    optimiser = torch.optim.AdamW(visual.parameters(), lr=1e-5, weight_decay=0.1, fused=True)

    def call() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            features = visual(pictures)
        logits = F.normalize(features.float(), dim=-1) @ head.T
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(visual.parameters(), 1.0)
        optimiser.step()

    return call


def _decoding() -> Callable[[], object]:
    """Read a JPEG, resize its shorter side to 224 by bicubic interpolation, cut out the centre."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    fine = np.asarray(coarse.resize(PICTURE, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(fine + generator.normal(0, 6, fine.shape).astype(np.int16), 0, 255)
    file = io.BytesIO()
    Image.fromarray(noisy.astype(np.uint8)).save(file, "JPEG", quality=90)
    data = file.getvalue()

    def call() -> None:
        for _ in range(DECODED):
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            picture = V.resize(picture, [224], V.InterpolationMode.BICUBIC)
            V.pil_to_tensor(V.center_crop(picture, [224, 224]))

    return call


if __name__ == "__main__":
    main()
