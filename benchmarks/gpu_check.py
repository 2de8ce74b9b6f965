"""Check, without data and in ten minutes, that a GPU computes what a CPU does, and how fast.

    python benchmarks/gpu_check.py [--quick] [--folder artifacts/gpu-check]

CLIP ViT-B/32 with random weights and random pictures; the profile `smoke`, solved again on the
GPU; the paper's steps on generated data sets. Prints a page of verdicts and writes it to
`gpu-check-DEVICE.md`, its numbers to `.json`, and the rates of `throughput.py` beside them. Without
a GPU it goes through the same checks on the CPU, at a small size, and gives no verdict.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from experiment import clip, cost, results, session, training, weights
from experiment.pixels import Batches
from experiment.profiles import PROFILES, Recipe, Standard
from experiment.run import Run
from experiment.steps.provenance import provenance
from experiment.tasks import Split
from paintlib import sampling, solver
from paintlib.interpolation import WeightPath
from paintlib.losses import TaskLoss
from paintlib.objective import PairObjective

ROOT = Path(__file__).resolve().parent.parent
CUDA_ONLY = {  # file and function, and the check that reaches them
    "experiment/session.py": "free_device, use_threads: the lock; losses",
    "experiment/pixels.py": "to_device, pinned and without waiting: losses, resumed",
    "experiment/steps/finetuning.py": "bfloat16 where the GPU has it: the paper's steps",
    "experiment/cost.py": "the batch that the estimate times: the paper's steps",
    "paintlib/_template.py": "the example of `paintlib init`: not reached, a user's own file",
    "experiment/steps/baseline.py": "the name of the GPU: the paper's steps",
    "benchmarks/machine.py": "waiting for the GPU: all rates",
    "benchmarks/throughput.py": "batches and precisions of a GPU: all rates",
}


class Verdict(NamedTuple):
    """What one check found."""

    check: str
    holds: bool
    found: str

    def row(self, gpu: bool) -> str:
        """Return the line of the page."""
        said = ("holds" if self.holds else "FAILS") if gpu else "no GPU: not checked"
        return f"| {self.check} | {said} | {self.found} |"


class Case(NamedTuple):
    """An image tower on the CPU, a head, and pictures with labels."""

    tower: nn.Module
    head: Tensor
    split: Split
    standard: Standard
    batch: int

    def on(self, device: torch.device) -> nn.Module:
        """Return a copy of the tower on `device`, for scoring."""
        return copy.deepcopy(self.tower).to(device).eval()

    def loss(self, visual: nn.Module, batch: int = 0) -> TaskLoss:
        """Return the loss of all pictures as the steps of a run compute it."""
        device = next(visual.parameters()).device
        batches = Batches(self.split, batch or self.batch, device)
        return TaskLoss(
            visual, batches, clip.classifier(visual, self.head.to(device), self.standard)
        )

    def train(self, device: torch.device, recipe: Recipe, dtype: torch.dtype | None = None,
              **options: Any) -> Iterator[training.Step]:  # fmt: skip
        """Fine-tune `options["visual"]`, or a copy of the tower, as the step `finetune` does."""
        visual = options.pop("visual", None) or self.on(device)
        logits = clip.classifier(visual, self.head.to(device), self.standard, dtype)
        return training.finetune(visual, logits, self.split, recipe, seed=0, **options)


def random_case(images: int, batch: int, *, tiny: bool) -> Case:
    """Return ViT-B/32, or a tiny tower, with random weights, pictures, head and labels."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(cost.MODEL)
    if tiny:
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
        config |= {"embed_dim": 16, "vision_cfg": vision}
    visual = open_clip.CLIP(**config).visual.eval()
    side, classes = visual.image_size[0], 100
    pictures = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8)
    head = 100 * nn.functional.normalize(torch.randn(classes, config["embed_dim"]), dim=-1)
    sizes = torch.full((images, 2), side)
    split = Split(pictures, torch.randint(classes, (images,)), sizes)
    return Case(visual, head, split, PROFILES["paper"].pixels, batch)


def check_losses(case: Case, device: torch.device) -> Iterator[Verdict]:
    """Compare losses, gradient and path of the device with those of the CPU, and two batchings."""
    towers = [case.on(torch.device("cpu")), case.on(device)]
    ours = [case.loss(visual) for visual in towers]
    here, there = (loss.evaluate().losses for loss in ours)
    each, mean = np.abs(there / here - 1).max(), abs(there.mean() / here.mean() - 1)
    yield Verdict("losses, GPU against CPU", bool(each < 1e-4 and mean < 1e-5),
                  f"mean off by {mean:.1e}, single images by at most {each:.1e}")  # fmt: skip
    other = case.loss(towers[1], case.batch * 2 // 3 + 1).evaluate().losses
    noise = abs(other.mean() / there.mean() - 1)
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield Verdict("noise of the objective", bool(noise < 1e-6) and not any(flags),
                  f"two batch sizes differ by {noise:.1e} (the solver's smallest step in the value "
                  f"is 1e-6); TF32 is {'ON' if any(flags) else 'off'}")  # fmt: skip
    first, second = (
        torch.cat([g.flatten().double().cpu() for g in loss.gradient().values()]) for loss in ours
    )
    apart = float((second - first).norm() / first.norm())
    yield Verdict("gradient, GPU against CPU", apart < 1e-3, f"apart by {apart:.1e} of its norm")
    end = {name: w + 0.01 * torch.randn_like(w) for name, w in case.tower.state_dict().items()}
    paths = [WeightPath(case.tower, end), WeightPath(case.tower, end).to(device)]
    points = [[path.at(alpha).cpu() for alpha in (0.0, 0.3, 1.0)] for path in paths]
    ends = all(torch.equal(points[0][i], points[1][i]) for i in (0, 2))
    far = float((points[1][1] - points[0][1]).abs().max() / points[0][1].abs().max())
    same = "equal" if ends else "NOT equal"
    yield Verdict("path, GPU against CPU", ends and far < 1e-6,
                  f"{far:.1e} apart, {same} to the bit at the ends")  # fmt: skip


def check_resumed(case: Case, device: torch.device) -> Iterator[Verdict]:
    """Compare a fine-tuning that was killed and resumed with two that were not."""
    size = min(case.batch, len(case.split.labels) // 2)
    recipe = Recipe(6, size, 1e-4, 1, checkpoint_every=2)
    towers = [case.on(device) for _ in range(3)]
    for visual in towers[:2]:
        list(case.train(device, recipe, visual=visual))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkpoint.safetensors")
        list(itertools.islice(case.train(device, recipe, checkpoint=file), 5))
        steps = len(list(case.train(device, recipe, visual=towers[2], checkpoint=file)))
    once, again, resumed, start = (
        nn.utils.parameters_to_vector(tower.parameters()).detach().double()
        for tower in (*towers, case.on(device))
    )
    repeat, apart = (float((w - once).norm() / (once - start).norm()) for w in (again, resumed))
    yield Verdict("fine-tuning killed at step 5 of 6, resumed",
                  apart <= max(2 * repeat, 1e-3) and repeat < 0.05 and steps == 2,
                  f"{steps} steps were left; weights apart by {apart:.1e} of the way they went, "
                  f"those of two runs without a kill by {repeat:.1e}")  # fmt: skip


def check_lock(device: torch.device) -> Iterator[Verdict]:
    """Take a GPU as a step does: the next one gets another, and the first when it is free again."""
    held = [session.free_device() for _ in range(max(torch.cuda.device_count(), 1) + 1)]
    own = [str(d) for d, lock in held if lock]
    for _, lock in held:
        if lock:
            lock.close()
    again, lock = session.free_device()
    if lock:
        lock.close()
    yield Verdict("lock of a GPU", device.type == "cuda" and len(set(own)) == len(own) > 0
                  and held[-1][1] is None and str(again) == own[0],
                  f"{len(own)} of {len(held)} steps had a GPU of their own")  # fmt: skip


def check_rates(case: Case, device: torch.device, bare: dict[str, float]) -> Iterator[Verdict]:
    """Compare the images a second of scoring and training with those of a bare loop, and `set_`."""
    kind, images = device.type, len(case.split.labels)
    half = torch.bfloat16 if trains_in_bf16(device) else None
    visual = case.on(device)
    loss = case.loss(visual)
    loss.evaluate()
    scoring = images / machine.timed(loss.evaluate, kind)
    warm, steps = 2, 2 + max(images // case.batch, 2)
    run = case.train(device, Recipe(steps, case.batch, 1e-5, 1, checkpoint_every=steps), half)
    list(itertools.islice(run, warm))
    rest = (steps - warm) * case.batch / machine.timed(lambda: list(run), kind)
    for what, rate in {"forward": scoring, "training": rest}.items():
        share = rate / bare[what]
        yield Verdict(f"images per second, {what}", share >= 0.8, f"{rate:,.1f}, a bare loop "
                      f"{bare[what]:,.1f}: {100 * share:.0f} %")  # fmt: skip
    path = WeightPath(case.tower, {n: w + 1 for n, w in case.tower.state_dict().items()}).to(device)
    start = path.start
    copied = torch.empty_like(start)
    calls = lambda: path.set_(visual, 0.3), lambda: copied.copy_(start)
    least = [min(column) for column in zip(*machine.alternately(calls, 20, kind), strict=True)]
    speeds = [n * start.nbytes / s / 1e9 for n, s in zip((3, 2), least, strict=True)]
    yield Verdict("bandwidth of `set_`", speeds[0] >= 0.8 * speeds[1],
                  f"{speeds[0]:,.0f} GB/s, `copy_` {speeds[1]:,.0f}")  # fmt: skip


def trains_in_bf16(device: torch.device) -> bool:
    """Say what the step `finetune` does on this device."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def check_smoke(run: Run, device: torch.device) -> Iterator[Verdict]:
    """Solve the pairs of a run of twins again on the device, and fine-tune in bfloat16."""
    if failed := solve(f"profile={run.profile.name}"):
        yield Verdict("profile `smoke`", False, failed)
        return
    own, pixels = session.Session(run), run.profile.pixels
    # the session is one of a CPU; a GPU's algorithms are not all deterministic
    torch.use_deterministic_algorithms(device.type == "cpu")

    def case(task: str, split: str, visual: nn.Module) -> Case:
        return Case(visual, own.head(task), own.split(task, split), pixels, run.profile.batch_size)

    off, moved = [], []
    for pair in itertools.product(run.profile.supported, run.profile.patching):
        kept, curves = (known := results.read_pair(run.pair(*pair)))["solutions"], known["curves"]
        visual, path = own.tower(empty=True).to(device), own.path(pair[1]).to(device)
        tasks = [case(task, "validation", visual).loss(visual) for task in pair]
        classes = [curves[role]["classes"] for role in ("supported", "patching")]
        objective = PairObjective(path, tasks, classes, known["normalisation"], names=pair)
        found = solver.log_quintic(objective, xtol=sampling.tolerance(objective))
        moved.append(abs(found.alpha - kept["log_quintic"]["alpha"]))
        for i, alpha in enumerate(curves["alphas"]):
            before = [curves[role]["loss"][i] for role in ("supported", "patching")]
            now = [score.loss for score in objective.score(alpha)]
            off += [abs(a / b - 1) for a, b in zip(now, before, strict=True)]
    yield Verdict("profile `smoke`, its pairs on the GPU", max(off) < 1e-4 and max(moved) < 0.01,
                  f"losses of its run on the CPU met within {max(off):.1e}, "
                  f"alpha* within {max(moved):.1e}")  # fmt: skip
    task, right = run.profile.patching[0], []
    for dtype in (None, torch.bfloat16):
        train = case(task, "train", own.tower())
        visual = train.on(device)
        list(train.train(device, run.profile.finetuning, dtype, visual=visual))
        scores = case(task, "test", visual).loss(visual).evaluate()
        right.append(scores.correct.astype(float))
    change = right[1] - right[0]
    mean, error = change.mean(), change.std(ddof=1) / len(change) ** 0.5
    yield Verdict("fine-tuning in bfloat16", bool(abs(mean) <= 3 * error),
                  f"test accuracy of {task}: {right[0].mean():.3f} in float32, changed by "
                  f"{mean:+.3f} ± {error:.3f}")  # fmt: skip


def check_steps(folder: Path) -> Iterator[Verdict]:
    """Run the paper's steps on generated data sets, ViT-B/32 with random weights, no pages."""
    call([sys.executable, "tests/trees.py", str(folder)])
    failed = solve("profile=paper", f"data={folder}", "limit=8", "tasks=STL10,DTD")
    found = failed
    if not failed:
        run = Run.of("paper", limit=8, tasks="STL10,DTD", root=ROOT)
        provenance(run)
        said = results.read_json(run.results / "provenance.json")
        precision = weights.metadata(run.fine_tuned("DTD"))["precision"]
        times = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in said["seconds"].items())
        found = f"on {said['device']}, fine-tuned in {precision}: {times}"
    yield Verdict("the paper's steps, `LIMIT=8`", not failed, found)


def solve(*given: str) -> str:
    """Run all steps up to the solved pairs; return the end of what went wrong."""
    command = [sys.executable, "-m", "snakemake", "solved", "--cores", "4", "--rerun-incomplete"]
    done = call([*command, "--scheduler", "greedy", "--config", *given], check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("paintlib: ")]
    return (said or done.stdout.splitlines())[-1] if done.returncode else ""


def call(command: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's folder."""
    return subprocess.run(command, cwd=ROOT, check=check, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)  # fmt: skip


def hours(rates: dict[str, float]) -> dict[str, float]:
    """Return the hours of each step of the whole experiment, as the page `runbook` counts them."""
    pairs = results.read_pairs("results/micro")
    asked = [{e[0] for s in p["solutions"].values() for e in s["trace"]} for p in pairs]
    fresh = [len(a - set(p["curves"]["alphas"])) for a, p in zip(asked, pairs, strict=True)]
    answers = [len({s["alpha"] for s in p["solutions"].values()} - {0.0, 1.0}) for p in pairs]
    per, mean = cost.clip_flops(), [sum(n) / len(pairs) for n in (fresh, answers)]
    work = cost.steps(fresh=mean[0], answers=mean[1])
    return {step: w.hours(per, rates) for step, w in work.items()}


def page(verdicts: list[Verdict], rates: dict[str, float], about: dict[str, Any]) -> str:
    """Return the page: verdicts, what the experiment will take, what was reached."""
    gpu, each = about["kind"] == "cuda", hours(rates)
    good = sum(v.holds is True for v in verdicts)
    head = f"{good} of {len(verdicts)} checks hold." if gpu else "No GPU: not checked."
    rows = [v.row(gpu) for v in verdicts]
    times = ", ".join(f"{step} {h:,.1f}" for step, h in each.items())
    speeds = ", ".join(f"{what} {rate:,.1f}" for what, rate in rates.items())
    reached = [f"- `{file}`: {what}" for file, what in CUDA_ONLY.items()]
    return "\n".join([
        f"# {about['device']}", "", f"**{head}** torch {about['versions']['torch']}.", "",
        "| Check | Verdict | Found |", "|---|---|---|", *rows, "",
        "## The whole experiment here", "",
        f"**{sum(each.values()):,.1f} hours** on this machine, one job after the other: {times}. "
        f"Measured, pictures per second: {speeds} (decoding on one core).", "",
        "## Code that only a GPU reaches", "", *reached, "",
    ])  # fmt: skip


def fastest(folder: Path, quick: bool, note: str) -> dict[str, float]:
    """Measure the bare loops with `throughput.py`; return the best pictures a second of each."""
    options = ["--folder", str(folder), "--note", note, *(["--quick"] if quick else [])]
    call([sys.executable, str(ROOT / "benchmarks/throughput.py"), *options])
    (file,) = folder.glob(f"throughput-{machine.slug(device().type)}.json")
    best: dict[str, float] = {}
    for row in results.read_json(file)["images_per_second"]:
        if (row["work"], row["precision"]) != ("forward", "fp16"):  # losses are computed in fp32
            best[row["work"]] = max(row["median"], best.get(row["work"], 0.0))
    return best


def device() -> torch.device:
    """Return the GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> int:
    """Check, print and write; fail if a check on a GPU does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, and no workflow")
    parser.add_argument("--folder", type=Path, default=ROOT / "artifacts/gpu-check")
    options = parser.parse_args()
    where = device()
    gpu, smoke = where.type == "cuda", Run.of("smoke", root=ROOT)
    session.use_threads(torch.get_num_threads(), where)
    case = random_case(*((2048, 128) if gpu else (16, 8)), tiny=options.quick)
    few = random_case(64 if gpu else 16, case.batch, tiny=options.quick)
    options.folder.mkdir(parents=True, exist_ok=True)
    bare = fastest(options.folder, not gpu or options.quick, "gpu-check")
    checks: list[Callable[[], Iterator[Verdict]]] = [
        lambda: check_losses(few, where), lambda: check_resumed(few, where),
        lambda: check_lock(where), lambda: check_rates(case, where, bare),
    ]  # fmt: skip
    if not options.quick:
        checks += [lambda: check_smoke(smoke, where), lambda: check_steps(ROOT / "artifacts/trees")]
    verdicts = []
    for check in checks:
        for verdict in check():
            print(verdict.row(gpu), flush=True)
            verdicts.append(verdict)
    about = machine.describe(where.type, torch.get_num_threads(), "")
    text = page(verdicts, bare, about)
    file = options.folder / f"gpu-check-{machine.slug(where.type)}"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
    kept = [verdict._asdict() for verdict in verdicts]
    results.write_json(file.with_suffix(".json"), about | {"verdicts": kept, "rates": bare})
    print(f"\n{text}\nwritten: {file}.md")
    return int(gpu and not all(verdict.holds for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
