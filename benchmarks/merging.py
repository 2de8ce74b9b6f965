"""Time `paintlib patch`, from two files to the patched one, against mergekit's linear merge.

    python benchmarks/merging.py --mergekit PROGRAM [--layers 6] [--repeats 3] [--note TEXT]

PROGRAM is `mergekit-pytorch`, of an environment of its own: it wants other versions than ours. Both
commands are whole processes, which read both files and write the merged one; ours chooses alpha
too, mergekit is told it. The layers hold 17 million numbers each. Writes
`results/bench/merging-DEVICE.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import machine
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiment import results

ROOT = Path(__file__).resolve().parent.parent
LAYER = 4096
TASKS = f"""
import torch
from torch import nn
from paintlib import TaskLoss
from paintlib.patch import Setup


def tasks():
    layers = [nn.Linear({LAYER}, {LAYER}) for _ in range(LAYERS)]
    model = nn.Sequential(*layers).eval()
    images = torch.randn(8, {LAYER}, generator=torch.Generator().manual_seed(0))
    logits = lambda images: model(images)[:, :4]
    batches = [[(images, torch.arange(8) % 4)], [(images, torch.arange(8) // 2)]]
    names = ("keep", "repair")
    return Setup({{n: TaskLoss(model, b, logits) for n, b in zip(names, batches, strict=True)}})
"""
MERGE = "merge_method: linear\ndtype: float32\nmodels:\n"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", default="mergekit-pytorch", metavar="PROGRAM")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="kept in the file, say what else was running")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "bench")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in (0, 1):
            torch.manual_seed(seed)
            layers = nn.Sequential(*(nn.Linear(LAYER, LAYER) for _ in range(options.layers)))
            save_file(layers.state_dict(), folder / f"{seed}.safetensors")
        (folder / "tasks.py").write_text(TASKS.replace("LAYERS", str(options.layers)))
        patch = ["-m", "paintlib", "patch", "0.safetensors", "1.safetensors"]
        patch += ["--tasks", "tasks:tasks", "--normalisation", "none"]
        patch += ["--bracket", "0.25", "0.75"]  # at an end there would be nothing to merge
        patch += ["--json", "--out", "ours.safetensors"]

        def ours() -> float:
            (folder / "paintlib.npz").unlink(missing_ok=True)
            here = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, *patch], cwd=folder, check=True, env=here, capture_output=True
            )
            return float(json.loads(done.stdout)["alpha"])

        alpha = ours()
        models = (f"  - {{model: {folder / f'{i}.safetensors'}, parameters: {{weight: {w}}}}}\n"
                  for i, w in enumerate((1 - alpha, alpha)))  # fmt: skip
        (folder / "merge.yml").write_text(MERGE + "".join(models))
        theirs = partial(subprocess.run, [options.mergekit, "merge.yml", "theirs"], cwd=folder,
                         check=True, capture_output=True)  # fmt: skip
        rounds = machine.alternately([ours, theirs], options.repeats, "cpu")
        merged = [
            load_file(f) for f in (folder / "ours.safetensors", folder / "theirs/model.safetensors")
        ]
        apart = max(float((merged[0][n] - t).abs().max()) for n, t in merged[1].items())
    record = {
        **machine.describe("cpu", torch.get_num_threads(), options.note),
        "numbers": sum(tensor.numel() for tensor in merged[1].values()),
        "alpha": alpha, "largest difference": apart,
        "seconds": {"paintlib patch": machine.spread([a for a, _ in rounds]),
                    "mergekit": machine.spread([b for _, b in rounds])},
        "ratio": machine.spread([a / b for a, b in rounds]),
    }  # fmt: skip
    path = options.folder / f"merging-{machine.slug('cpu')}.json"
    results.write_json(path, record)
    print(f"paintlib patch takes {record['ratio']['median']:.2f} of mergekit's time, "
          f"at alpha = {alpha:.4f}; the weights differ by {apart:.1e} at most")  # fmt: skip


if __name__ == "__main__":
    main()
