"""How much memory a path takes beside its inputs: counted in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paintlib import interpolation

ROOT = Path(__file__).resolve().parent.parent.parent

# RSS, since what torch reserves and never touches costs nothing; its peak is reset by the kernel
CODE = """
import sys, torch
from torch import nn
from paintlib import WeightPath, interpolation

interpolation.CHUNK = 2**17  # to this model what it is to one of a billion numbers, by far
dtype, file = getattr(torch, sys.argv[1]), sys.argv[2]

def memory(field):
    rows = dict(line.split(":") for line in open("/proc/self/status"))
    return int(rows[field].split()[0]) * 1024

def network(seed):
    layers = (nn.utils.skip_init(nn.Linear, 1024, 1024, dtype=dtype) for _ in range(LAYERS))
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.data.fill_(seed)
    return model

def use(ends, model):
    path = WeightPath(*ends)
    path.length
    path.digests
    for alpha in (0.0, 0.3, 1.0):
        path.set_(model, alpha)
    path.save(file, 0.3)
    path.save(file, 0.3, model=model)

LAYERS = 1  # for what the first use of anything takes
use([network(1), network(2)], network(3))
LAYERS = 24
ends, model = [network(seed).state_dict() for seed in (1, 2)], network(3)
copy = 4 * sum(p.numel() for p in model.parameters())
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
use(ends, model)
print((memory("VmHWM") - before) / copy)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counted by Linux alone")
@pytest.mark.parametrize(("dtype", "copies"), [("float32", 2.2), ("bfloat16", 1.2)])
def test_path_takes_two_copies_or_one_for_half_precision(dtype, copies, tmp_path):
    for _ in range(3):  # pages of libraries that the kernel took away meanwhile count anew
        done = subprocess.run(
            [sys.executable, "-c", CODE, dtype, str(tmp_path / "w.safetensors")],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        if (taken := float(done.stdout)) <= copies:
            break
    assert copies - 0.3 < taken <= copies
    assert interpolation.CHUNK <= 2**22  # of more, three in float64 are a tenth of a billion
