"""The steps of a run, from images to curves: each reads the files before it and writes its own.

Every step shows its progress and writes its file whole or not at all, so that a killed run goes on
from the last finished step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiment.real import checkpoints
from experiment import gallery, clip, pixels, results, training
from paintlib import metrics
from experiment.run import Run, plain, use_threads
from paintlib.losses import Score
from experiment.profiles import ALPHAS, SmallClip
from experiment.twins import micro
from experiment.real import datasets as paper
from experiment.tasks import SPLITS, Task

# short lines at a calm pace: the bars end up in the log of a parallel run
_BAR: dict[str, Any] = {"mininterval": 10.0, "ncols": 90, "leave": False}
_SIDE = 224  # pixels of CLIP ViT-B/32


def render(run: Run) -> None:
    """Draw the splits of every twin and write one file a task."""
    for task in tqdm(run.profile.tasks, "render the tasks", **_BAR):
        tensors: dict[str, Tensor] = {}
        for split in SPLITS:
            count = run.profile.images(split)
            assert count is not None
            drawn = micro.render(task, split, count)
            tensors |= {f"{split}.images": drawn.images, f"{split}.labels": drawn.labels}
        clip.save(run.images(task), tensors, task=task)


def caption(run: Run) -> None:
    """Draw the captioned images for the pre-training, and write them."""
    clip = run.profile.clip
    assert isinstance(clip, SmallClip)
    images, captions = micro.captioned(clip.captioned_images, run.seed)
    distinct = sorted(set(captions))
    rows = {caption: row for row, caption in enumerate(distinct)}
    numbers = torch.tensor([rows[caption] for caption in captions])
    tensors = {"images": images, "captions": numbers}
    clip.save(run.captioned, tensors, distinct=json.dumps(distinct))


def pretrain(run: Run) -> None:
    """Pre-train CLIP on captioned images; write its image tower and the zero-shot heads."""
    use_threads(2, run.device)  # fixed, because sums depend on it
    clip = run.profile.clip
    assert isinstance(clip, SmallClip)
    tensors, metadata = clip.load(run.captioned)
    distinct: list[str] = json.loads(metadata["distinct"])
    # every task is in the vocabulary, so that a profile's choice of tasks changes no weight
    prompts = [p for t in micro.TASKS.values() for c in t.classnames for p in t.prompts(c)]
    tokenize = clip.Tokenizer.covering([*distinct, *prompts], clip.text["context_length"])
    torch.manual_seed(run.seed)
    model = clip.build_clip(clip.embed_dim, clip.vision, clip.text, tokenize.vocabulary)
    checkpoint = run.artifacts / "pretraining.checkpoint"
    steps = training.pretrain(
        model,
        tensors["images"],
        tokenize(distinct),
        tensors["captions"],
        run.profile.pixels,
        clip.recipe,
        seed=run.seed,
        checkpoint=checkpoint,
    )
    _watch(steps, clip.recipe.steps, "pre-train CLIP")
    for task in run.profile.tasks:
        head = clip.zero_shot_head(model, tokenize, micro.TASKS[task])
        clip.save(run.zero_shot_head(task), {"head": head}, task=task, seed=run.seed)
    _save_zero_shot(run, model, "pre-trained in the run", recipe=clip.recipe)
    checkpoint.unlink(missing_ok=True)


def decode(run: Run, task: str, data: Path, workers: int = 0) -> None:
    """Decode the splits of a real data set into the cache, and write where they are.

    Args:
        run: the run.
        task: the data set.
        data: the folder of all data sets.
        workers: processes that decode.

    Raises:
        ValueError: the data set is missing or damaged, or the disk too small.
    """
    described = paper.task(task, data)
    splits: dict[str, Any] = {}
    for split, cache in _caches(run, task, data).items():
        what, count = f"{task} {split}", len(cache.rows)
        if not cache.ready:
            size = f"{count} images, {tqdm.format_sizeof(cache.bytes, 'B')}"
            print(f"paintlib: decoding {what}: {size} in {run.cache}", flush=True)
        with tqdm(total=count, desc=f"decode {what}", **_BAR) as bar:
            for done in cache.write(workers if count > 500 else 0):
                bar.update(done - bar.n)
        splits[split] = {"cache": cache.key, "images": count}
    content = {
        "task": task,
        "classnames": described.classnames,
        "templates": described.templates,
        "splits": splits,
    }
    results.write_json(run.images(task), content)
    results.write_json(_seen(run, task), {"fingerprint": paper.fingerprint(task, data)})


def _caches(run: Run, task: str, data: Path) -> dict[str, pixels.Cache]:
    caches: dict[str, pixels.Cache] = {}
    for split in SPLITS:
        if split == "train" and (task in run.profile.supported or run.source != "own"):
            continue  # never fine-tuned on
        pictures = paper.open_split(task, data, split)
        rows = pixels.choose(pictures, run.profile.images(split))
        fit: pixels.Fit = "squash" if split == "train" else "crop"
        caches[split] = pixels.Cache(run.cache, pictures, rows, _SIDE, fit)
    return caches


def _seen(run: Run, task: str) -> Path:
    return run.images(task).with_suffix(".seen")


def check_inputs(run: Run, data: Path) -> None:
    """Look at all that a run on real data sets reads from outside, before anything starts.

    A data set that is not the one that was decoded is noted in `Run.source_of`, on which decoding
    depends. One that was taken away since it was decoded is not missed.

    Raises:
        ValueError: data sets or fine-tuned weights are missing; all of them are named.
    """
    if not run.profile.real:
        return
    wanted = [task for task in run.profile.tasks if not run.images(task).exists()]
    if missing := paper.missing(wanted, data):
        count = f"{len(missing)} of {len(run.profile.tasks)}"
        lines = "".join(f"\n  {why.partition('; `')[0]}" for why in missing.values())
        raise ValueError(
            f"{count} data sets are not in {data.resolve()}:{lines}\n"
            f"`python -m paintlib data --data {data}` says how to get each; "
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
        if task not in wanted and not paper.missing([task], data):
            _notice_changes(run, task, data)


def _notice_changes(run: Run, task: str, data: Path) -> None:
    fingerprint = {"fingerprint": paper.fingerprint(task, data)}
    seen = _seen(run, task)
    if seen.exists() and results.read_json(seen) == fingerprint:
        return
    decoded = results.read_json(run.images(task))["splits"]
    keys = {split: cache.key for split, cache in _caches(run, task, data).items()}
    if keys != {split: entry["cache"] for split, entry in decoded.items()}:
        results.write_json(run.source_of(task), keys)
    results.write_json(seen, fingerprint)


def zero_shot(run: Run, weights: str) -> None:
    """Write both towers of a public CLIP.

    Args:
        run: the run.
        weights: `openai`, `random`, or a file, see `checkpoints.pretrained_clip`.

    Raises:
        ValueError: the weights cannot be had or are of another architecture.
    """
    use_threads(1, run.device)
    assert isinstance(run.profile.clip, str)
    torch.manual_seed(run.seed)
    model = checkpoints.pretrained_clip(run.profile.clip, weights)
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith("visual.")}
    clip.save(run.text_tower, rest, weights=Path(weights).name)
    _save_zero_shot(run, model, Path(weights).name, recipe="none")


def head(run: Run, task: str) -> None:
    """Write the zero-shot head that a data set's prompts make with the text tower.

    Raises:
        ValueError: a file of the steps before is damaged.
    """
    use_threads(1, run.device)
    assert isinstance(run.profile.clip, str)
    described = results.read_json(run.images(task))
    templates = described["templates"][: 1 if run.profile.limit else None]
    prompted = Task(task, tuple(described["classnames"]), tuple(templates), task)
    prompts = [prompt for name in prompted.classnames for prompt in prompted.prompts(name)]
    tower, _ = clip.load(run.text_tower)
    model, tokenize = clip.text_model(run.profile.clip, tower, prompts)
    with tqdm(total=len(prompts), desc=f"head of {task}", **_BAR) as bar:

        def watched(texts: list[str]) -> Tensor:
            bar.update(len(texts))
            return tokenize(texts)

        rows = clip.zero_shot_head(model.to(run.device), watched, prompted)
    clip.save(run.zero_shot_head(task), {"head": rows}, task=task)


def finetune(run: Run, patching: str) -> None:
    """Write the image tower fine-tuned on a patching task: by the run itself, or a public one.

    Raises:
        ValueError: a public checkpoint is missing or of another architecture.
    """
    use_threads(1, run.device)
    visual = run.image_tower()
    parent = clip.metadata(run.zero_shot)["digest"]
    if run.source != "own":
        if run.source == "hub":
            file = checkpoints.hub_checkpoint(patching)
        else:
            file = checkpoints.local_checkpoint(Path(run.finetuned), patching)
        weights = checkpoints.import_image_tower(file, visual.state_dict())
        clip.save(
            run.fine_tuned(patching), weights, task=patching, parent=parent, imported=file.name
        )
        return
    recipe = run.profile.finetuning
    checkpoint = run.artifacts / "fine_tuned" / f"{patching}.checkpoint"
    split = run.load_split(patching, "train")
    if run.profile.limit:  # a generated data set may be smaller than the limit
        recipe = replace(recipe, batch_size=min(recipe.batch_size, len(split.labels)))
    # bfloat16 needs no scaling of the loss; a GPU without it trains in float32
    mixed = run.device.type == "cuda" and torch.cuda.get_device_capability(run.device) >= (8, 0)
    precision = torch.bfloat16 if mixed else None
    head_ = run.head(patching)
    logits = clip.classifier(visual, head_, run.profile.pixels, precision)
    images = clip.digest({"labels": split.labels})
    if run.profile.real:
        images = results.read_json(run.images(patching))["splits"]["train"]["cache"]
    steps = training.finetune(
        visual,
        logits,
        split,
        recipe,
        seed=run.seed,
        identity=f"images {images} head {clip.digest({'head': head_})} {precision}",
        checkpoint=checkpoint,
    )
    _watch(steps, recipe.steps, f"fine-tune on {patching}")
    clip.save(
        run.fine_tuned(patching),
        visual.state_dict(),
        task=patching,
        step=recipe.steps,
        seed=run.seed,
        recipe=recipe,
        precision=precision or torch.float32,
        parent=parent,
    )
    checkpoint.unlink(missing_ok=True)


def score_baseline(run: Run, supported: str) -> None:
    """Score a supported task at the zero-shot weights, where all paths begin, once for all of them.

    Its gradient is kept too: only the direction differs from path to path.
    """
    use_threads(1, run.device)
    visual = run.image_tower()
    score, losses = run.task_loss(visual, supported, "validation", run.half).evaluate()
    gradient = run.task_loss(visual, supported, "validation").gradient()
    test = run.task_loss(visual, supported, "test", run.half).score()
    clip.save(
        run.baseline(supported),
        {
            "losses": torch.from_numpy(losses),
            **{f"gradient.{name}": part for name, part in gradient.items()},
        },
        task=supported,
        validation=json.dumps(score),
        test=json.dumps(test),
        parent=clip.metadata(run.zero_shot)["digest"],
    )


def sample_curves(run: Run, patching: str) -> None:
    """Score every supported task and the patching task along one path, and write the curves.

    One patched model serves all the pairs of its patching task.
    """
    use_threads(1, run.device)
    visual, path = run.empty_tower(), run.path(patching)
    tasks = (*run.profile.supported, patching)
    losses = {task: run.task_loss(visual, task, "validation", run.half) for task in tasks}
    scores: dict[str, list[Score]] = {task: [] for task in tasks}
    by_image: dict[str, list[Tensor]] = {task: [] for task in tasks}
    ends: dict[str, dict[str, Any]] = {"zero_shot": {}, "fine_tuned": {}}
    gradients = {}
    displacement = path.start.double() - path.end.double()
    parent = clip.metadata(run.zero_shot)["digest"]
    for task in tqdm(run.profile.supported, f"start of the path to {patching}", **_BAR):
        tensors, known = clip.load(run.baseline(task))
        if known["parent"] != parent:
            raise ValueError(
                f"{run.baseline(task)} is of other weights than {run.zero_shot}; "
                "delete it and run again"
            )
        scores[task].append(Score(*json.loads(known["validation"])))
        by_image[task].append(tensors.pop("losses"))
        ends["zero_shot"][task] = plain(Score(*json.loads(known["test"])))
        parts = {k.removeprefix("gradient."): v.to(run.device) for k, v in tensors.items()}
        gradient = path.flatten(parts).double()
        gradients[task] = {
            "norm": float(torch.linalg.vector_norm(gradient)),
            "similarity": metrics.gradient_similarity(displacement, gradient),
            "slope": float(-(gradient @ displacement)),
        }
    path.set_(visual, 0.0)
    score, each = losses[patching].evaluate()
    scores[patching].append(score)
    by_image[patching].append(torch.from_numpy(each))
    test = run.task_loss(visual, patching, "test", run.half).score()
    ends["zero_shot"][patching] = plain(test)
    assert ALPHAS[0] == 0.0
    for alpha in tqdm(ALPHAS[1:], f"curves to {patching}", **_BAR):
        path.set_(visual, alpha)
        for task in tasks:
            score, each = losses[task].evaluate()
            scores[task].append(score)
            by_image[task].append(torch.from_numpy(each))
    gallery.write_predictions(run, visual, path, patching)
    path.set_(visual, 1.0)
    for task in tqdm(tasks, "test images, fine-tuned", **_BAR):
        score = run.task_loss(visual, task, "test", run.half).score()
        ends["fine_tuned"][task] = plain(score)
    stacked = {task: torch.stack(rows) for task, rows in by_image.items()}
    clip.save(run.curve_losses(patching), stacked, task=patching)
    results.write_json(
        run.curves(patching),
        {
            "alphas": ALPHAS,
            "length": path.length,
            "tasks": {
                task: {
                    "classes": len(run.head(task)),
                    "images": scores[task][0].images,
                    "loss": [score.loss for score in scores[task]],
                    "accuracy": [score.accuracy for score in scores[task]],
                }
                for task in tasks
            },
            "gradients": gradients,
            "test": ends,
        },
    )


def describe(run: Run) -> None:
    """Write what the pages need beyond the pairs: `run.json` and a few test images a task."""
    gallery.write_pictures(run)
    profile = run.profile
    weights, metadata = clip.load(run.zero_shot)
    tasks: dict[str, Any] = {}
    for task in profile.tasks:
        if profile.real:
            decoded = results.read_json(run.images(task))["splits"]
            images = {split: decoded[split]["images"] for split in decoded}
        else:
            images = {split: profile.images(split) for split in SPLITS}
        tasks[task] = {
            "label": profile.label(task),
            "classes": len(clip.load(run.zero_shot_head(task))[0]["head"]),
            "images": images,
        }
    results.write_json(
        run.results / "run.json",
        {
            "profile": profile.name,
            "seed": run.seed,
            **run.choices,
            "supported": profile.supported,
            "patching": profile.patching,
            "tasks": tasks,
            "parameters": int(metadata["parameters"]),
            "image_tower_parameters": sum(w.numel() for w in weights.values()),
        },
    )


def _save_zero_shot(run: Run, model: nn.Module, weights: str, **metadata: object) -> None:
    visual = model.visual
    assert isinstance(visual, nn.Module)
    clip.save(
        run.zero_shot,
        visual.state_dict(),
        profile=run.profile.name,
        seed=run.seed,
        weights=weights,
        parameters=sum(p.numel() for p in model.parameters()),
        **metadata,
    )


def _watch(steps: Iterable[training.Step], total: int, what: str) -> None:
    with tqdm(total=total, desc=what, **_BAR) as bar:
        for step in steps:
            if step.number > bar.n + 1:
                bar.initial = step.number - 1  # resumed: the time left counts from here
            bar.update(step.number - bar.n)
            if step.number % 50 == 0:
                bar.set_postfix(loss=f"{float(step.loss):.3f}", refresh=False)
