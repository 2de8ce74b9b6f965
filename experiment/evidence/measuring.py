"""Measure what the solver does not ask for: the truth behind the sample, other rules, forgetting.

None of it chooses an alpha of the results; the pages compare with it. The reference run is measured
on thousands of test images drawn for it, other seeds on the test images that they have.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiment import results
from experiment.profiles import ALPHAS
from experiment.progress import bar
from experiment.run import Run
from experiment.session import Session
from experiment.tasks import Split
from paintlib import metrics, solver
from paintlib.interpolation import WeightPath
from paintlib.losses import TaskLoss
from paintlib.store import Store

STEP = 0.02  # of alpha: how far the passes of a derivative at the zero-shot weights lie from it
FISHER_IMAGES = 128  # a backward pass each

Losses = Mapping[str, TaskLoss]


def refuse_chosen_on_test(run: Run) -> None:
    """Refuse a run whose evidence would be of the images that alpha was chosen on."""
    if run.choosing != "validation":
        raise ValueError(
            f"{run.name} chooses alpha on test images, so these cannot say what is true of the "
            "choice; the evidence needs a run that chooses on validation images"
        )


def measure(run: Run, patching: str, images: int = 0) -> None:
    """Write `evidence/PATCHING.json`: with `images`, on so many test images, and all rules."""
    refuse_chosen_on_test(run)
    session = Session(run)
    supported, tasks = run.profile.supported, (*run.profile.supported, patching)
    visual, path = session.tower(empty=True), session.path(patching)
    validation = session.losses(visual, tasks, "validation")
    tests = {task: _test(session, visual, task, images) for task in bar(tasks, "test images")}
    counts = {t: sum(len(labels) for _, labels in loss.batches) for t, loss in tests.items()}
    key = session.key(patching) | {f"test images of {t}": str(n) for t, n in counts.items()}
    store = session.stored("truth", patching, key)  # of single test images
    alphas = ALPHAS if images else ALPHAS[::2]
    found: dict[str, Any] = {
        "length": path.length,
        "store": store.file.name,
        "truth": _truth(store, visual, path, tests, alphas, f"the truth to {patching}"),
        "forgetting": {
            task: _forgetting(visual, path, validation[task])
            for task in bar(supported, f"forgetting on the path to {patching}")
        },
    }
    if images:
        entropies: dict[str, list[float]] = {task: [] for task in tasks}
        for alpha in bar(ALPHAS, f"entropies to {patching}"):
            path.set_(visual, alpha)
            for task in tasks:
                entropies[task].append(_entropy(_logits(validation[task])))
        path.set_(visual, 0.0)
        zero_shot = {task: validation[task].score().loss for task in tasks}
        lines = lines_path(path)
        found |= {
            "entropy": {"alphas": ALPHAS, **entropies},
            "lines": {
                task: _search(visual, lines, pair, [zero_shot[t] for t in pair], validation, tests)
                for task in bar(supported, f"LiNeS to {patching}")
                if (pair := (task, patching))
            },
            "fisher": _merge(visual, path, validation, tests, supported, patching),
        }
    results.write_json(run.evidence(patching), found, flat=True)


def lines_path(path: WeightPath) -> WeightPath:
    """Return the weights that LiNeS searches: at gamma, layer l of L goes a share of the whole way.

    The share is gamma + (1 - gamma) (l - 1) / (L - 1): the deeper, the further. What is outside the
    blocks counts as their first. Linear in gamma, it is a path, whose end is that of `path`.
    """
    start, end = path.unflatten(path.start), path.unflatten(path.end)
    blocks = {name: int(name.split(".")[2]) for name in start if ".resblocks." in name}
    last = max(blocks.values())
    moved = {name: torch.lerp(start[name], end[name], blocks.get(name, 0) / last) for name in start}
    return WeightPath(moved, end)


def _test(session: Session, visual: nn.Module, task: str, images: int) -> TaskLoss:
    """Return the loss on at least the run's own test images; twins are drawn on request."""
    run = session.run
    split: Split = session.split(task, "test")
    if images > len(split.labels) and not run.profile.real and task != "MNIST":  # digits are few
        from experiment.twins import drawing, micro

        split = micro.render(task, "test", images, **drawing.design(run, "WILD_SHARE"))
    return session.loss(visual, task, split)


def _truth(store: Store, visual: nn.Module, path: WeightPath, tests: Losses,
           alphas: Sequence[float], what: str) -> dict[str, Any]:  # fmt: skip
    for alpha in bar(alphas, what):
        if missing := [task for task in tests if store.get(alpha, task) is None]:
            path.set_(visual, alpha)
            store.put(alpha, {task: tests[task].evaluate() for task in missing})
    curves: dict[str, Any] = {}
    for task in tests:
        rows = [row.score for alpha in alphas if (row := store.get(alpha, task))]
        curves[task] = {"images": rows[0].images, "loss": [row.loss for row in rows],
                        "accuracy": [row.accuracy for row in rows]}  # fmt: skip
    return {"alphas": alphas, "tasks": curves}


def _forgetting(visual: nn.Module, path: WeightPath, loss: TaskLoss) -> dict[str, float]:
    """Return what the zero-shot weights know of a supported loss ahead on the path."""
    logits, losses = [], []
    labels = torch.cat([labels for _, labels in loss.batches])
    for alpha in (-STEP, 0.0, STEP):
        path.set_(visual, alpha)
        logits.append(_logits(loss))
        losses.append(float(F.cross_entropy(logits[-1], labels)))
    change = (logits[2] - logits[0]) / (2 * STEP)
    told = metrics.forgetting_prediction(
        logits[1].cpu().numpy(), change.cpu().numpy(), labels.cpu().numpy()
    )
    hessian = (losses[0] - 2 * losses[1] + losses[2]) / STEP**2 / losses[1]
    return {"loss": losses[1], **told._asdict(), "hessian": hessian}


@torch.inference_mode()
def _logits(loss: TaskLoss) -> Tensor:
    assert loss.logits is not None
    return torch.cat([loss.logits(images) for images, _ in loss.batches]).double()


def _entropy(logits: Tensor) -> float:
    """Return the mean entropy of the predictions, nats: AdaMerging's objective, without labels."""
    logs = logits.log_softmax(1)
    return float(-(logs.exp() * logs).sum(1).mean())


def _search(visual: nn.Module, path: WeightPath, pair: Sequence[str], scales: Sequence[float],
            validation: Losses, tests: Losses) -> dict[str, Any]:  # fmt: skip
    def objective(alpha: float) -> list[float]:
        path.set_(visual, alpha)
        losses = (validation[task].score().loss for task in pair)
        return [loss / scale for loss, scale in zip(losses, scales, strict=True)]

    found = solver.log_quintic(objective)
    path.set_(visual, found.alpha)
    score = {"evaluations": found.evaluations, "status": found.status.name, "value": found.value}
    return {"alpha": found.alpha, **score, "test": [tests[task].score()[:2] for task in pair]}


def _merge(visual: nn.Module, path: WeightPath, validation: Losses, tests: Losses,
           supported: Sequence[str], patching: str) -> dict[str, Any]:  # fmt: skip
    """Average both ends, each weight by its Fisher information for its own task, of equal norms."""
    path.set_(visual, 1.0)
    end, found = _fisher(visual, path, validation[patching]), {}
    for task in bar(supported, f"Fisher averages with {patching}"):
        path.set_(visual, 0.0)
        start = _fisher(visual, path, validation[task])
        tiny = 1e-6 * float(start.mean() + end.mean())  # where neither says anything
        share = (end + tiny) / (start + end + 2 * tiny)
        merged = torch.lerp(path.start, path.end, share)
        visual.load_state_dict(path.unflatten(merged))
        score = [tests[name].score()[:2] for name in (task, patching)]
        found[task] = {"alpha": float(share.mean()), "test": score}
    return found


def _fisher(visual: nn.Module, path: WeightPath, loss: TaskLoss) -> Tensor:
    """Return the diagonal of the Fisher information, labels drawn from the model's predictions."""
    assert loss.logits is not None
    generator = torch.Generator().manual_seed(0)
    parameters = dict(visual.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    total = torch.zeros_like(path.start)
    single = (image for images, _ in loss.batches for image in images.split(1))
    for image in itertools.islice(single, FISHER_IMAGES):
        logs = loss.logits(image).log_softmax(1)
        label = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).item()
        gradient = torch.autograd.grad(logs[0, int(label)], [*parameters.values()])
        total += path.flatten(dict(zip(parameters, gradient, strict=True))).square_()
    return total.div_(torch.linalg.vector_norm(total))
