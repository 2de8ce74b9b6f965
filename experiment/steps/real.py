"""The steps of real data sets alone: decode them, take CLIP's weights, make heads, verify them."""

import math
import shutil
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from experiment import clip, pixels, results
from experiment.evidence.measuring import refuse_chosen_on_test
from experiment.progress import bar
from experiment.real import checkpoints, datasets, facts, hub
from experiment.run import Run
from experiment.session import Session
from experiment.tasks import Split, Task
from experiment.weights import load, save

DATA = Path("data")  # where data sets are looked for
PUBLISHED = results.ROOT / "book/published/vitb32_accuracy.csv"
CAUSES = (
    "the order of the labels, class names or templates, the activation (QuickGELU or GELU), the "
    "preprocessing of the images, other weights"
)
IMAGES = 2000  # to verify with, at most; five standard errors are then 5.6 points or less
_SIDE = 224  # pixels of CLIP ViT-B/32
_TOWER = 4 * 87_849_216  # bytes of its image tower


def decode(run: Run, task: str, data: Path = DATA, workers: int = 0) -> None:
    """Decode a data set of a folder, or of its mirror (`hub`), into the cache; write its places."""
    described = datasets.task(task, "cifar100-spaces" in run.variants)
    caches = _caches(run, task, data)
    for split, cache in caches.items():
        what, count = f"{task} {split}", len(cache)
        if not cache.ready:
            size = f"{count} images, {cache.bytes / 1e9:.3f} GB"
            print(f"paintlib: decoding {what}: {size} in {run.cache}", flush=True)
        with bar(None, f"decode {what}", total=count) as progress:
            for done in cache.write(workers if count > 500 else 0):
                progress.update(done - progress.n)
    splits = {split: {"cache": c.key, "images": len(c)} for split, c in caches.items()}
    about = {"classnames": described.classnames, "templates": described.templates}
    results.write_json(run.images(task), {"task": task, **about, "splits": splits})


def check(run: Run, data: Path = DATA, weights: str = "", images: int = 0) -> None:
    """Look at all that a run on real data sets reads from outside, before anything starts.

    A data set that is not the one that was decoded is noted in `Run.source_of`, on which decoding
    depends. One that was taken away since it was decoded is not missed. All that are missing or
    not whole are named in a ValueError; so are weights that are missing or of another model, a disk
    without room, and evidence (on `images`) that such a run cannot give.
    """
    if images:
        refuse_chosen_on_test(run)
    if weights not in ("", "openai", "random"):
        checkpoints.tag_of(str(run.profile.clip), weights)
    tasks, drawn = run.profile.tasks, data == hub.ROOT
    there = () if drawn else tasks
    wanted = [task for task in tasks if not run.images(task).exists()]
    if missing := {} if drawn else datasets.missing(wanted, data):
        lines = "".join(f"\n  {why.partition('; `')[0]}" for why in missing.values())
        raise ValueError(
            f"{len(missing)} of {len(tasks)} data sets are not in {data.resolve()}:"
            f"{lines}\n`.venv/bin/python -m experiment data --data {data}` says how to get each; "
            "TASKS=A,B,... runs only some; DATA=hub draws them from mirrors"
        )
    if lost := [t for t in run.profile.patching if run.source == "given" and not run.given(t)]:
        raise ValueError(
            f"FINETUNED={run.finetuned} is neither `own` nor `hub` nor a folder with all "
            f"fine-tuned weights: TASK.safetensors and TASK.pt are missing for {', '.join(lost)}"
        )
    for task in run.profile.patching if run.source == "given" else ():
        if not run.fine_tuned(task).exists():
            reference = clip.empty_image_tower(str(run.profile.clip)).state_dict()
            checkpoints.import_image_tower(Path(*run.given(task)), reference)
    if drawn:
        hub.check(wanted, run.cache)
        if "GTSRB" in wanted and "gtsrb-tracks" in run.variants:
            raise ValueError("gtsrb-tracks needs DATA=FOLDER: the mirror's images tell no tracks")
    _check_room(run, data)
    for task in tasks:
        if not run.source_of(task).exists():
            results.write_json(run.source_of(task), {})
    counts = {task: _look(run, task, data) for task in there if not datasets.missing([task], data)}
    odd = {task: n for task, n in counts.items() if n and task not in run.accept}
    if odd and not run.profile.limit:
        lines = "".join(f"\n  {task}: {n}" for task, n in odd.items())
        raise ValueError(
            f"{len(odd)} of {len(tasks)} data sets in {data.resolve()} are not whole or of another "
            f"version:{lines}\nunpack them again, or ACCEPT={','.join(odd)} takes them as they are"
        )


def _look(run: Run, task: str, data: Path) -> str:
    """Note whether a data set has changed, and return how it deviates from the official one."""
    note, fingerprint = run.images(task).with_suffix(".seen"), datasets.fingerprint(task, data)
    seen = results.read_json(note) if note.exists() else {}
    if seen.get("fingerprint") != fingerprint:
        seen = {"fingerprint": fingerprint, "deviation": datasets.deviation(task, data)}
        if run.images(task).exists():
            decoded = results.read_json(run.images(task))["splits"]
            keys = {split: cache.key for split, cache in _caches(run, task, data).items()}
            if keys != {split: entry["cache"] for split, entry in decoded.items()}:
                results.write_json(run.source_of(task), keys)
        results.write_json(note, seen)
    return str(seen["deviation"])


def _check_room(run: Run, data: Path) -> None:
    """Refuse a run whose decoded images and weights find no room, as far as they are not there."""
    if run.cache.is_symlink() and not run.cache.exists():
        raise ValueError(
            f"{run.cache} is a link to {run.cache.readlink()}, which is not there: mount it, "
            "or take the link away"
        )
    notes = [results.read_json(file) for file in run.cache.parent.glob("*/tasks/*.json")]
    splits = [(note["task"], *item) for note in notes if note for item in note["splits"].items()]
    decoded = {(t, s, e["images"]) for t, s, e in splits if (run.cache / e["cache"]).is_dir()}
    lacking = [t for t in run.profile.patching if not run.fine_tuned(t).exists()]
    images, weights = 0.0, (len(lacking) + 5) * _TOWER
    for task in run.profile.tasks:
        own = facts.splits(run, task).items()
        images += sum(3 * _SIDE**2 * n for split, n in own if (task, split, n) not in decoded)
        if data == hub.ROOT and not run.profile.images("test"):  # whole sets are downloaded
            images += 1e9 * float(facts.get(task).size.split()[0])
    disks: dict[int, tuple[Path, float]] = {}
    for folder, need in ((run.cache.absolute(), images), (run.folder.absolute(), weights)):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        disk = place.stat().st_dev
        disks[disk] = (place, need + disks.get(disk, (place, 0.0))[1])
    for place, need in disks.values():
        if need > (free := shutil.disk_usage(place).free):
            raise ValueError(
                f"the run writes {need / 1e9:.1f} GB to the disk of {place}, which has "
                f"{free / 1e9:.1f} GB free: IMAGES=n takes a sample, and {run.cache} may be a link "
                "to a folder on another disk"
            )


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
    if run.source == "hub":  # the public weights were trained against this head
        described |= facts.get(task).hub_head
    templates = described["templates"][: 1 if run.profile.limit else None]
    prompted = Task(task, tuple(described["classnames"]), tuple(templates))
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
    for split in facts.splits(run, task):
        images = run.profile.images(split)
        if data == hub.ROOT:
            pictures = hub.open_split(task, run.cache, split, images, task in run.accept)
        else:
            pictures = datasets.open_split(task, data, split, "gtsrb-tracks" in run.variants)
        fit: pixels.Fit = "squash" if split == "train" else "crop"
        rows = pixels.choose(pictures, images, bool(run.profile.sample))
        caches[split] = pixels.Cache(run.cache, pictures, rows, _SIDE, fit)
    return caches


def verify(run: Run, kind: str, task: str) -> None:
    """Write a task's accuracy on test images, or refuse one that is far from all published ones."""
    session = Session(run)
    visual = session.tower()
    if kind == "fine_tuned":
        visual.load_state_dict(load(run.fine_tuned(task))[0])
    images, labels, *_ = session.split(task, "test")
    every = math.ceil(len(labels) / IMAGES)  # some data sets are sorted by class
    score = session.loss(visual, task, Split(images[::every], labels[::every])).score()
    # few training images make no published accuracy, but they should do no harm
    whole = kind == "heads" or run.source != "own" or not run.profile.sample
    compared = "zero_shot" if kind == "heads" else kind
    problem = deviation(task, compared, score.accuracy, score.images, whole=whole)
    dry = run.profile.limit or run.choices["weights"] == "random"
    if problem and not dry and task not in run.accept:
        raise ValueError(f"{problem}; likely causes: {CAUSES}; ACCEPT={task} goes on all the same")
    [file] = run.verified(kind, task)
    results.write_json(file, {**score._asdict(), "deviation": problem})


def deviation(task: str, kind: str, accuracy: float, images: int, *, whole: bool = True) -> str:
    """Say how an accuracy is outside what is published by 5 standard errors and 3 points, or "".

    Without the `whole` training set, an accuracy may lie anywhere above the zero-shot ones.
    """
    rows = pd.read_csv(PUBLISHED)
    known = rows[rows["dataset"] == task].set_index("kind")["accuracy"] / 100
    low, high = known[[kind if whole else "zero_shot"]].min(), known[[kind]].max()
    nearest = min(max(accuracy, low), high)
    error = math.sqrt(nearest * (1 - nearest) / images)
    if abs(accuracy - nearest) <= max(5 * error, 0.03):
        return ""
    what = f"{kind.replace('_', '-')} accuracy on {images} test images"
    return (
        f"{task}: the {what} is {100 * accuracy:.1f} %, published ones are {100 * low:.1f} to "
        f"{100 * high:.1f} % ({abs(accuracy - nearest) / error:.0f} standard errors away)"
    )
