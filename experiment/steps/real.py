"""The first steps of a run on real data sets: decode them, take CLIP's weights, make the heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from experiment import clip, pixels, results
from experiment.progress import bar
from experiment.real import checkpoints, datasets
from experiment.run import Run
from experiment.session import Session
from experiment.tasks import SPLITS, Task
from experiment.weights import load, save

DATA = Path("data")  # where data sets are looked for
_SIDE = 224  # pixels of CLIP ViT-B/32


def decode(run: Run, task: str, data: Path = DATA, workers: int = 0) -> None:
    """Decode the splits of a real data set into the cache, and write where they are.

    Args:
        run: the run.
        task: the data set.
        data: the folder of all data sets.
        workers: processes that decode.

    Raises:
        ValueError: the data set is missing or damaged, or the disk too small.
    """
    described = datasets.task(task, data)
    splits: dict[str, Any] = {}
    for split, cache in _caches(run, task, data).items():
        what, count = f"{task} {split}", len(cache.rows)
        if not cache.ready:
            size = f"{count} images, {tqdm.format_sizeof(cache.bytes, 'B')}"
            print(f"paintlib: decoding {what}: {size} in {run.cache}", flush=True)
        with bar(None, f"decode {what}", total=count) as progress:
            for done in cache.write(workers if count > 500 else 0):
                progress.update(done - progress.n)
        splits[split] = {"cache": cache.key, "images": count}
    content = {
        "task": task,
        "classnames": described.classnames,
        "templates": described.templates,
        "splits": splits,
    }
    results.write_json(run.images(task), content)
    results.write_json(_seen(run, task), {"fingerprint": datasets.fingerprint(task, data)})


def check(run: Run, data: Path = DATA) -> None:
    """Look at all that a run on real data sets reads from outside, before anything starts.

    A data set that is not the one that was decoded is noted in `Run.source_of`, on which decoding
    depends. One that was taken away since it was decoded is not missed.

    Raises:
        ValueError: data sets or fine-tuned weights are missing; all of them are named.
    """
    wanted = [task for task in run.profile.tasks if not run.images(task).exists()]
    if missing := datasets.missing(wanted, data):
        count = f"{len(missing)} of {len(run.profile.tasks)}"
        lines = "".join(f"\n  {why.partition('; `')[0]}" for why in missing.values())
        raise ValueError(
            f"{count} data sets are not in {data.resolve()}:{lines}\n"
            f"`.venv/bin/python -m experiment data --data {data}` says how to get each; "
            "TASKS=A,B,... runs only some"
        )
    if run.source == "given":
        problems = []
        for task in run.profile.patching:
            try:
                checkpoints.local_checkpoint(Path(run.finetuned), task)
            except ValueError as error:
                problems.append(f"\n  {task}: {error}")
        if problems:
            raise ValueError(
                f"FINETUNED={run.finetuned} is neither `own` nor `hub` nor a folder with all "
                f"fine-tuned weights:{''.join(problems)}"
            )
    for task in run.profile.tasks:
        if not run.source_of(task).exists():
            results.write_json(run.source_of(task), {})
        if task not in wanted and not datasets.missing([task], data):
            _notice_changes(run, task, data)


def zero_shot(run: Run, weights: str = "openai") -> None:
    """Write both towers of a public CLIP.

    Args:
        run: the run.
        weights: `openai`, `random`, or a file, see `checkpoints.pretrained_clip`.

    Raises:
        ValueError: the weights cannot be had or are of another architecture.
    """
    assert isinstance(run.profile.clip, str)
    torch.manual_seed(run.seed)
    model = checkpoints.pretrained_clip(run.profile.clip, weights)
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}
    name = Path(weights).name
    save(run.text_tower, rest, weights=name)
    save(run.zero_shot, model.visual.state_dict(), weights=name, recipe="none",
         parameters=sum(p.numel() for p in model.parameters()), seed=run.seed,
         profile=run.profile.name)  # fmt: skip


def head(run: Run, task: str) -> None:
    """Write the zero-shot head that a data set's prompts make with the text tower.

    Raises:
        ValueError: a file of the steps before is damaged.
    """
    session = Session(run)
    assert isinstance(run.profile.clip, str)
    described = results.read_json(run.images(task))
    templates = described["templates"][: 1 if run.profile.limit else None]
    prompted = Task(task, tuple(described["classnames"]), tuple(templates), task)
    prompts = [prompt for name in prompted.classnames for prompt in prompted.prompts(name)]
    tower, _ = load(run.text_tower)
    model, tokenize = clip.text_model(run.profile.clip, tower, prompts)
    with bar(None, f"head of {task}", total=len(prompts)) as progress:

        def watched(texts: list[str]) -> Tensor:
            progress.update(len(texts))
            return tokenize(texts)

        rows = clip.zero_shot_head(model.to(session.device), watched, prompted)
    save(run.head(task), {"head": rows}, task=task)


def _caches(run: Run, task: str, data: Path) -> dict[str, pixels.Cache]:
    caches: dict[str, pixels.Cache] = {}
    for split in SPLITS:
        if split == "train" and (task in run.profile.supported or run.source != "own"):
            continue  # never fine-tuned on
        pictures = datasets.open_split(task, data, split)
        rows = pixels.choose(pictures, run.profile.images(split))
        fit: pixels.Fit = "squash" if split == "train" else "crop"
        caches[split] = pixels.Cache(run.cache, pictures, rows, _SIDE, fit)
    return caches


def _seen(run: Run, task: str) -> Path:
    return run.images(task).with_suffix(".seen")


def _notice_changes(run: Run, task: str, data: Path) -> None:
    fingerprint = {"fingerprint": datasets.fingerprint(task, data)}
    seen = _seen(run, task)
    if seen.exists() and results.read_json(seen) == fingerprint:
        return
    decoded = results.read_json(run.images(task))["splits"]
    keys = {split: cache.key for split, cache in _caches(run, task, data).items()}
    if keys != {split: entry["cache"] for split, entry in decoded.items()}:
        results.write_json(run.source_of(task), keys)
    results.write_json(seen, fingerprint)
