"""The first steps of a run on real data sets: decode them, take CLIP's weights, make the heads."""

from __future__ import annotations

from pathlib import Path

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
    """Decode the splits of a data set in the folder `data` into the cache; write where they are."""
    described, caches = datasets.task(task, data), _caches(run, task, data)
    for split, cache in caches.items():
        what, count = f"{task} {split}", len(cache)
        if not cache.ready:
            size = f"{count} images, {tqdm.format_sizeof(cache.bytes, 'B')}"
            print(f"paintlib: decoding {what}: {size} in {run.cache}", flush=True)
        with bar(None, f"decode {what}", total=count) as progress:
            for done in cache.write(workers if count > 500 else 0):
                progress.update(done - progress.n)
    content = {
        "task": task,
        "classnames": described.classnames,
        "templates": described.templates,
        "splits": {split: {"cache": c.key, "images": len(c)} for split, c in caches.items()},
    }
    results.write_json(run.images(task), content)
    results.write_json(_seen(run, task), {"fingerprint": datasets.fingerprint(task, data)})


def check(run: Run, data: Path = DATA, weights: str = "") -> None:
    """Look at all that a run on real data sets reads from outside, before anything starts.

    A data set that is not the one that was decoded is noted in `Run.source_of`, on which decoding
    depends. One that was taken away since it was decoded is not missed. All data sets that are
    missing are named in a ValueError, and so are fine-tuned weights and a file of `weights`.
    """
    if weights not in ("", "openai", "random") and not Path(weights).is_file():
        import open_clip

        tags = open_clip.list_pretrained_tags_by_model(run.profile.clip)
        if weights not in tags:
            raise ValueError(f"WEIGHTS={weights} is no file, and none of {', '.join(tags)}")
    wanted = [task for task in run.profile.tasks if not run.images(task).exists()]
    if missing := datasets.missing(wanted, data):
        lines = "".join(f"\n  {why.partition('; `')[0]}" for why in missing.values())
        raise ValueError(
            f"{len(missing)} of {len(run.profile.tasks)} data sets are not in {data.resolve()}:"
            f"{lines}\n`.venv/bin/python -m experiment data --data {data}` says how to get each; "
            "TASKS=A,B,... runs only some"
        )
    if lost := [t for t in run.profile.patching if run.source == "given" and not run.given(t)]:
        raise ValueError(
            f"FINETUNED={run.finetuned} is neither `own` nor `hub` nor a folder with all "
            f"fine-tuned weights: TASK.safetensors and TASK.pt are missing for {', '.join(lost)}"
        )
    for task in run.profile.tasks:
        if not run.source_of(task).exists():
            results.write_json(run.source_of(task), {})
        if task in wanted or datasets.missing([task], data):
            continue
        seen, fingerprint = _seen(run, task), {"fingerprint": datasets.fingerprint(task, data)}
        if seen.exists() and results.read_json(seen) == fingerprint:
            continue
        decoded = results.read_json(run.images(task))["splits"]
        keys = {split: cache.key for split, cache in _caches(run, task, data).items()}
        if keys != {split: entry["cache"] for split, entry in decoded.items()}:
            results.write_json(run.source_of(task), keys)
        results.write_json(seen, fingerprint)


def zero_shot(run: Run, weights: str = "openai") -> None:
    """Write both towers of a public CLIP: `openai`, `random`, or that of a file."""
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
    """Write the zero-shot head that a data set's prompts make with the text tower."""
    session = Session(run)
    assert isinstance(run.profile.clip, str)
    described = results.read_json(run.images(task))
    templates = described["templates"][: 1 if run.profile.limit else None]
    prompted = Task(task, tuple(described["classnames"]), tuple(templates), task)
    prompts = [prompt for name in prompted.classnames for prompt in prompted.prompts(name)]
    model, tokenize = clip.text_model(run.profile.clip, load(run.text_tower)[0], prompts)
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
