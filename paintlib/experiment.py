"""The steps of one run, from rendering to the objective of a pair, and the files between them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from paintlib import metrics, models, results, training
from paintlib.interpolation import WeightPath
from paintlib.losses import PairObjective, Score, TaskLoss, known_scores
from paintlib.profiles import ALPHAS, Profile, get, run_name
from paintlib.tasks import Split, micro
from paintlib.tasks.micro import SPLITS


@dataclass(frozen=True)
class Run:
    """One profile at one seed: where its files are, and the steps that write them.

    Steps are methods; each reads the files of the steps before it, shows its progress, and writes
    its own file whole or not at all.
    """

    profile: Profile
    seed: int
    root: Path = Path()

    @classmethod
    def of(cls, profile: str, seed: int = 0, root: Path | str = "") -> Run:
        """Return the run of a profile's name.

        Raises:
            ValueError: the profile is unknown or the seed negative.
        """
        run_name(profile, seed)
        return cls(get(profile), seed, Path(root))

    @property
    def name(self) -> str:
        """Return the run's folder name, `micro` or `micro-seed1` for instance."""
        return run_name(self.profile.name, self.seed)

    @property
    def artifacts(self) -> Path:
        """Return the folder of images, weights and curves, which git ignores."""
        return self.root / "artifacts" / self.name

    @property
    def results(self) -> Path:
        """Return the folder of the numbers behind every page."""
        return self.root / "results" / self.name

    def images(self, task: str) -> Path:
        """Return the file of a task's three splits."""
        return self.artifacts / "tasks" / f"{self._task(task)}.safetensors"

    @property
    def zero_shot(self) -> Path:
        """Return the file of the image tower before patching."""
        return self.artifacts / "zero_shot.safetensors"

    @property
    def heads(self) -> Path:
        """Return the file of every task's zero-shot head."""
        return self.artifacts / "heads.safetensors"

    def fine_tuned(self, patching: str) -> Path:
        """Return the file of the image tower after fine-tuning on a task."""
        return self.artifacts / "fine_tuned" / f"{self._task(patching)}.safetensors"

    def curves(self, patching: str) -> Path:
        """Return the file of all curves along the path to a task's fine-tuned weights."""
        return self.artifacts / "curves" / f"{self._task(patching)}.json"

    def pair(self, supported: str, patching: str) -> Path:
        """Return the results file of a pair."""
        return self.results / "pairs" / f"{supported}-{patching}.json"

    @staticmethod
    def label(task: str) -> str:
        """Return how a task is written on pages: a twin carries a µ."""
        return micro.TASKS[task].label

    def render(self) -> None:
        """Draw the splits of every task and write one file a task."""
        for task in tqdm(self.profile.tasks, "render the tasks", **_BAR):
            splits = {s: micro.render(task, s, self.profile.images(s)) for s in SPLITS}
            tensors = {
                f"{split}.{kind}": tensor
                for split, content in splits.items()
                for kind, tensor in content._asdict().items()
            }
            models.save(self.images(task), tensors, task=task)

    def load_split(self, task: str, split: str) -> Split:
        """Return one split of a task.

        Raises:
            ValueError: the task or the split is unknown, or the file is damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        tensors, _ = models.load(self.images(task))
        return Split(tensors[f"{split}.images"], tensors[f"{split}.labels"])

    def pretrain(self) -> None:
        """Pre-train CLIP on captioned images; write its image tower and the zero-shot heads."""
        _use_threads(2)  # fixed, because sums depend on it
        profile = self.profile
        images, captions = micro.captioned(profile.captioned_images, self.seed)
        distinct = sorted(set(captions))
        rows = {caption: row for row, caption in enumerate(distinct)}
        # every task is in the vocabulary, so that a profile's choice of tasks changes no weight
        prompts = [p for t in micro.TASKS.values() for c in t.classnames for p in t.prompts(c)]
        context = profile.text["context_length"]
        tokenize = models.Tokenizer.covering([*distinct, *prompts], context)
        torch.manual_seed(self.seed)
        model = models.build_clip(
            profile.embed_dim, profile.vision, profile.text, tokenize.vocabulary
        )
        checkpoint = self.artifacts / "pretraining.checkpoint"
        steps = training.pretrain(
            model,
            images,
            tokenize(distinct),
            torch.tensor([rows[caption] for caption in captions]),
            profile.pretraining,
            seed=self.seed,
            checkpoint=checkpoint,
        )
        _watch(steps, profile.pretraining.steps, "pre-train CLIP")
        heads = {
            task: models.zero_shot_head(model, tokenize, micro.TASKS[task])
            for task in profile.tasks
        }
        models.save(self.heads, heads, profile=profile.name, seed=self.seed)
        models.save(
            self.zero_shot,
            model.visual.state_dict(),
            profile=profile.name,
            seed=self.seed,
            recipe=profile.pretraining,
            parameters=_parameters(model),
        )
        checkpoint.unlink(missing_ok=True)

    def image_tower(self) -> nn.Module:
        """Return the image tower with the zero-shot weights, in evaluation mode.

        Raises:
            ValueError: the weights are damaged, or of another architecture.
        """
        vocabulary = torch.zeros(1, dtype=torch.int64)  # the text tower is dropped
        profile = self.profile
        clip = models.build_clip(profile.embed_dim, profile.vision, profile.text, vocabulary)
        weights, _ = models.load(self.zero_shot)
        visual: nn.Module = clip.visual
        try:
            visual.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{self.zero_shot} is not of the profile's architecture: {error}; delete "
                f"{self.artifacts} and run again"
            ) from error
        return visual.eval()

    def head(self, task: str) -> Tensor:
        """Return a task's zero-shot head `(classes, embed_dim)`, logit scale included."""
        heads, _ = models.load(self.heads)
        return heads[self._task(task)]

    def finetune(self, patching: str) -> None:
        """Fine-tune the image tower on a patching task and write it."""
        _use_threads(1)
        visual = self.image_tower()
        _, parent = models.load(self.zero_shot)
        recipe = self.profile.finetuning
        checkpoint = self.artifacts / "fine_tuned" / f"{patching}.checkpoint"
        steps = training.finetune(
            visual,
            self.head(patching),
            *self.load_split(patching, "train"),
            recipe,
            seed=self.seed,
            checkpoint=checkpoint,
        )
        _watch(steps, recipe.steps, f"fine-tune on {patching}")
        models.save(
            self.fine_tuned(patching),
            visual.state_dict(),
            task=patching,
            step=recipe.steps,
            seed=self.seed,
            recipe=recipe,
            parent=parent["digest"],
        )
        checkpoint.unlink(missing_ok=True)

    def path(self, patching: str) -> WeightPath:
        """Return the path from the zero-shot weights to those fine-tuned on a task.

        Raises:
            ValueError: a file is damaged, or the fine-tuning started from other weights.
        """
        start, parent = models.load(self.zero_shot)
        end, child = models.load(self.fine_tuned(patching))
        if child["parent"] != parent["digest"]:
            raise ValueError(
                f"{self.fine_tuned(patching)} was not fine-tuned from {self.zero_shot}; "
                "delete it and run again"
            )
        return WeightPath(start, end)

    def task_loss(self, visual: nn.Module, task: str, split: str) -> TaskLoss:
        """Return a task's loss on one split as a function of the weights in `visual`."""
        images, labels = self.load_split(task, split)
        size = self.profile.batch_size
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        return TaskLoss(visual, batches, models.classifier(visual, self.head(task)))

    def sample_curves(self, patching: str) -> None:
        """Score every supported task and the patching task along one path, and write the curves.

        One patched model serves all the pairs of its patching task.
        """
        _use_threads(1)
        visual, path = self.image_tower(), self.path(patching)
        tasks = (*self.profile.supported, patching)
        losses = {task: self.task_loss(visual, task, "validation") for task in tasks}
        scores: dict[str, list[Score]] = {task: [] for task in tasks}
        for alpha in tqdm(ALPHAS, f"curves to {patching}", **_BAR):
            path.set_(visual, alpha)
            for task in tasks:
                scores[task].append(losses[task].score())
        path.set_(visual, 0.0)
        displacement = path.start.double() - path.end.double()
        gradients = {}
        for task in self.profile.supported:
            gradient = path.flatten(losses[task].gradient()).double()
            gradients[task] = {
                "norm": float(torch.linalg.vector_norm(gradient)),
                "similarity": metrics.gradient_similarity(displacement, gradient),
                "slope": float(-(gradient @ displacement)),
            }
        ends = {}
        for name, alpha in (("zero_shot", 0.0), ("fine_tuned", 1.0)):
            path.set_(visual, alpha)
            ends[name] = {
                task: _plain(self.task_loss(visual, task, "test").score()) for task in tasks
            }
        results.write_json(
            self.curves(patching),
            {
                "alphas": ALPHAS,
                "length": path.length,
                "tasks": {
                    task: {
                        "classes": len(micro.TASKS[task].classnames),
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

    def open_pair(self, supported: str, patching: str) -> Pair:
        """Return one pair, ready to be solved: model, path, curves and both tasks.

        Raises:
            ValueError: a task is not in its role in this profile, or a file is damaged.
        """
        for role, task, valid in (
            ("supported", supported, self.profile.supported),
            ("patching", patching, self.profile.patching),
        ):
            if task not in valid:
                raise ValueError(f"unknown {role} task {task!r}; choose one of {', '.join(valid)}")
        _use_threads(1)
        visual = self.image_tower()
        return Pair(
            self,
            supported,
            patching,
            visual,
            self.path(patching),
            results.read_json(self.curves(patching)),
        )

    def describe(self) -> None:
        """Write `run.json`: what the pages need to know about the run beyond its pairs."""
        weights, metadata = models.load(self.zero_shot)
        results.write_json(
            self.results / "run.json",
            {
                "profile": self.profile.name,
                "seed": self.seed,
                "supported": self.profile.supported,
                "patching": self.profile.patching,
                "images": {split: self.profile.images(split) for split in SPLITS},
                "captioned_images": self.profile.captioned_images,
                "parameters": int(metadata["parameters"]),
                "image_tower_parameters": sum(w.numel() for w in weights.values()),
            },
        )

    def _task(self, task: str) -> str:
        if task not in self.profile.tasks:
            raise ValueError(
                f"the profile {self.profile.name!r} has no task {task!r}; "
                f"choose one of {', '.join(self.profile.tasks)}"
            )
        return task


@dataclass(frozen=True)
class Pair:
    """A supported and a patching task with the path between the two sets of weights."""

    run: Run
    supported: str
    patching: str
    visual: nn.Module
    path: WeightPath
    curves: dict[str, Any]

    @property
    def labels(self) -> dict[str, str]:
        """Return how the two tasks are written on pages."""
        return {role: self.run.label(task) for role, task in self._tasks().items()}

    @property
    def device(self) -> str:
        """Return where the model is evaluated."""
        return str(self.path.start.device)

    def objective(self, normalisation: str) -> PairObjective:
        """Return the pair's objective on validation images; the sampled curves cost nothing.

        Raises:
            ValueError: the normalisation is unknown.
        """
        tasks = self._tasks().values()
        curves = [self.curves["tasks"][task] for task in tasks]
        return PairObjective(
            self.path,
            [self.run.task_loss(self.visual, task, "validation") for task in tasks],
            [curve["classes"] for curve in curves],
            normalisation,
            known_scores(self.curves["alphas"], curves),
        )

    def sampled(self) -> dict[str, Any]:
        """Return the curves of both tasks in the form of a results file."""
        tasks = {role: self.curves["tasks"][task] for role, task in self._tasks().items()}
        return {"alphas": self.curves["alphas"], **tasks}

    def test(self, alpha: float) -> dict[str, Any]:
        """Return loss and accuracy of both tasks on test images at `alpha`."""
        ends = {0.0: "zero_shot", 1.0: "fine_tuned"}
        if alpha in ends:
            scores = self.curves["test"][ends[alpha]]
            return {"alpha": alpha, **{r: scores[t] for r, t in self._tasks().items()}}
        self.path.set_(self.visual, alpha)
        return {
            "alpha": alpha,
            **{
                role: _plain(self.run.task_loss(self.visual, task, "test").score())
                for role, task in self._tasks().items()
            },
        }

    def metrics(self, objective: PairObjective) -> dict[str, Any]:
        """Return the pair's metrics (paper, section 5) on validation images."""
        alphas, length = self.curves["alphas"], self.curves["length"]
        curve = self.curves["tasks"][self.supported]
        gradient = self.curves["gradients"][self.supported]
        transfer = metrics.backward_transfer(alphas, curve["loss"], length, gradient["slope"])
        ends = [(curve["loss"][i], curve["accuracy"][i]) for i in (0, -1)]
        parts = [objective(alpha) for alpha in alphas]
        columns = {"sum": [math.fsum(p) for p in parts]}
        columns |= {role: [p[i] for p in parts] for i, role in enumerate(self._tasks())}
        return {
            "length": length,
            "gradient_norm": gradient["norm"],
            "gradient_similarity": gradient["similarity"],
            "backward_transfer": transfer._asdict(),
            "forgetting": metrics.forgetting(*ends)._asdict(),
            "quasiconvexity_violation": {
                name: metrics.quasiconvexity_violation(values) for name, values in columns.items()
            },
        }

    def _tasks(self) -> dict[str, str]:
        return {"supported": self.supported, "patching": self.patching}


# short lines at a calm pace: the bars end up in the log of a parallel run
_BAR: dict[str, Any] = {"mininterval": 10.0, "ncols": 90, "leave": False}


def _watch(steps: Iterable[training.Step], total: int, what: str) -> None:
    with tqdm(total=total, desc=what, **_BAR) as bar:
        for step in steps:
            if step.number > bar.n + 1:
                bar.initial = step.number - 1  # resumed: the time left counts from here
            bar.update(step.number - bar.n)
            if step.number % 50 == 0:
                bar.set_postfix(loss=f"{float(step.loss):.3f}", refresh=False)


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)  # tiny moments of AdamW are slow otherwise
    torch.use_deterministic_algorithms(True)
    # filling fresh memory is a debugging aid, and slow
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _plain(score: Score) -> dict[str, float]:
    return {"loss": score.loss, "accuracy": score.accuracy}


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
