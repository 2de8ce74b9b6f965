"""One run of a profile: where its files are, what they hold, and the pairs made of them."""

from __future__ import annotations

import fcntl
import math
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from paintlib import metrics
from experiment import clip, pixels, results
from paintlib.interpolation import WeightPath
from paintlib.losses import PairObjective, Score, TaskLoss, known_scores, normaliser
from experiment.pixels import Batches
from experiment.profiles import Profile, get
from experiment.tasks import SPLITS, Split


@dataclass(frozen=True)
class Run:
    """One profile at one seed: where its files are, and how to read them.

    `experiment.steps` writes what is read here.

    Attributes:
        profile: what is run.
        seed: seed of the initial weights and the batches.
        root: the folder of the project.
        finetuned: where fine-tuned weights come from: `own` (made by the run), `hub` (public ones),
            or a folder that holds them.
    """

    profile: Profile
    seed: int
    root: Path = Path()
    finetuned: str = "own"

    @classmethod
    def of(
        cls,
        profile: str,
        seed: int = 0,
        root: Path | str = "",
        *,
        limit: int = 0,
        tasks: str = "",
        finetuned: str = "own",
    ) -> Run:
        """Return the run of a profile's name.

        Args:
            profile: `smoke`, `micro` or `paper`.
            seed: counts from 0.
            root: the folder of the project.
            limit: images a split of a dry run; 0 for none.
            tasks: names separated by commas; all of the profile by default.
            finetuned: `own`, `hub` or a folder, see `Run.finetuned`.

        Raises:
            ValueError: the profile or a task is unknown, the seed negative, or an option does not
                fit the profile.
        """
        if seed < 0:
            raise ValueError(f"seed = {seed}; a seed counts from 0")
        finetuned = finetuned or "own"
        chosen = get(profile).limited(limit)
        if tasks:
            chosen = chosen.only([name.strip() for name in tasks.split(",")])
        if finetuned != "own" and not chosen.real:
            raise ValueError(
                f"finetuned = {finetuned!r}: the profile {profile!r} fine-tunes its own weights; "
                "public ones exist for the profile paper"
            )
        return cls(chosen, seed, Path(root), finetuned)

    @property
    def source(self) -> str:
        """Return where fine-tuned weights come from, in a word: `own`, `hub` or `given`."""
        return self.finetuned if self.finetuned in ("own", "hub") else "given"

    @property
    def name(self) -> str:
        """Return the run's folder name, `micro` or `paper-hub-limit4-seed1` for instance."""
        choices = (
            (self.source, self.source != "own"),
            (f"limit{self.profile.limit}", self.profile.limit),
            (f"seed{self.seed}", self.seed),
        )
        return "-".join([self.profile.name, *(text for text, given in choices if given)])

    @property
    def artifacts(self) -> Path:
        """Return the folder of images, weights and curves, which git ignores."""
        return self.root / "artifacts" / self.name

    @property
    def results(self) -> Path:
        """Return the folder of the numbers behind every page."""
        return self.root / "results" / self.name

    @property
    def book(self) -> Path:
        """Return the folder of the run's book: micro at seed 0 is the committed one."""
        return self.root / "book" if self.name == "micro" else self.artifacts / "book"

    @property
    def cache(self) -> Path:
        """Return the folder of decoded images, which all runs share."""
        return self.root / "artifacts" / "cache"

    def images(self, task: str) -> Path:
        """Return the file of a task's splits: twins themselves, or where real ones are cached."""
        kind = "json" if self.profile.real else "safetensors"
        return self.artifacts / "tasks" / f"{self._task(task)}.{kind}"

    def source_of(self, task: str) -> Path:
        """Return the file that changes when a real data set is not the one that was decoded."""
        return self.artifacts / "tasks" / f"{self._task(task)}.source"

    @property
    def captioned(self) -> Path:
        """Return the file of the captioned images that a small CLIP is pre-trained on."""
        return self.artifacts / "captioned.safetensors"

    @property
    def zero_shot(self) -> Path:
        """Return the file of the image tower before patching."""
        return self.artifacts / "zero_shot.safetensors"

    @property
    def text_tower(self) -> Path:
        """Return the file of the rest of a public CLIP."""
        return self.artifacts / "text_tower.safetensors"

    def zero_shot_head(self, task: str) -> Path:
        """Return the file of a task's zero-shot head."""
        return self.artifacts / "heads" / f"{self._task(task)}.safetensors"

    def fine_tuned(self, patching: str) -> Path:
        """Return the file of the image tower after fine-tuning on a task."""
        return self.artifacts / "fine_tuned" / f"{self._task(patching)}.safetensors"

    def baseline(self, task: str) -> Path:
        """Return the file of a supported task's losses and gradient at the zero-shot weights."""
        return self.artifacts / "baseline" / f"{self._task(task)}.safetensors"

    def curves(self, patching: str) -> Path:
        """Return the file of all curves along the path to a task's fine-tuned weights."""
        return self.artifacts / "curves" / f"{self._task(patching)}.json"

    def curve_losses(self, patching: str) -> Path:
        """Return the file of the losses of single images behind those curves."""
        return self.artifacts / "curves" / f"{self._task(patching)}.safetensors"

    @property
    def pictures(self) -> Path:
        """Return the file about the test images that a page shows."""
        return self.results / "pictures" / "tasks.json"

    def strip_of(self, task: str) -> Path:
        """Return the file of a task's shown images: photographs are packed harder than twins."""
        kind = "jpg" if self.profile.real else "png"
        return self.pictures.with_name(f"{self._task(task)}.{kind}")

    def predictions(self, patching: str) -> Path:
        """Return the file of what the shown images are taken for along the path to a task."""
        return self.results / "predictions" / f"{self._task(patching)}.json"

    def pair(self, supported: str, patching: str) -> Path:
        """Return the results file of a pair."""
        return self.results / "pairs" / f"{supported}-{patching}.json"

    @property
    def choices(self) -> dict[str, Any]:
        """Return what sets this run apart from its profile, for the provenance."""
        weights = clip.metadata(self.zero_shot)["weights"]
        return {"limit": self.profile.limit, "weights": weights, "finetuned": self.source}

    @cached_property
    def _claim(self) -> tuple[torch.device, IO[str] | None]:
        return free_device() if self.profile.real else (torch.device("cpu"), None)

    @property
    def device(self) -> torch.device:
        """Return where the model is computed: a GPU of its own where there is one.

        The twins stay on the CPU, where their numbers repeat to the bit.
        """
        return self._claim[0]

    def load_split(self, task: str, split: str) -> Split:
        """Return one split of a task.

        Raises:
            ValueError: the task or the split is unknown, or the file is damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        if self.profile.real:
            decoded = results.read_json(self.images(task))["splits"]
            if split not in decoded:
                raise ValueError(
                    f"this run never trains on {task}: its {split} images are not decoded"
                )
            try:
                return pixels.load(self.cache, decoded[split]["cache"], squashed=split == "train")
            except ValueError as error:
                choices = f"--profile {self.profile.name} --limit {self.profile.limit}"
                raise ValueError(
                    f"{error}; `python -m paintlib decode {choices} --seed {self.seed} --finetuned "
                    f"{self.finetuned} --data FOLDER {task}` does so, and repeats nothing else"
                ) from error
        tensors, _ = clip.load(self.images(task))
        return Split(tensors[f"{split}.images"], tensors[f"{split}.labels"])

    def empty_tower(self) -> nn.Module:
        """Return the image tower with weights of no meaning, for a path to write into."""
        clip = self.profile.clip
        if isinstance(clip, str):
            return clip.empty_image_tower(clip).to(self.device)
        # the text tower is dropped, so its vocabulary does not matter
        model = clip.build_clip(clip.embed_dim, clip.vision, clip.text, torch.zeros(1).long())
        visual: nn.Module = model.visual
        return visual.eval()

    def image_tower(self) -> nn.Module:
        """Return the image tower with the zero-shot weights, in evaluation mode.

        Raises:
            ValueError: the weights are damaged, or of another architecture.
        """
        visual = self.empty_tower()
        weights, _ = clip.load(self.zero_shot)
        try:
            visual.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{self.zero_shot} is not of the profile's architecture: {error}; delete "
                f"{self.artifacts} and run again"
            ) from error
        return visual

    def head(self, task: str) -> Tensor:
        """Return a task's zero-shot head `(classes, embed_dim)`, logit scale included."""
        tensors, _ = clip.load(self.zero_shot_head(task))
        return tensors["head"].to(self.device)

    def path(self, patching: str) -> WeightPath:
        """Return the path from the zero-shot weights to those fine-tuned on a task.

        Raises:
            ValueError: a file is damaged, or the fine-tuning started from other weights.
        """
        start, parent = clip.load(self.zero_shot)
        end, child = clip.load(self.fine_tuned(patching))
        if child["parent"] != parent["digest"]:
            raise ValueError(
                f"{self.fine_tuned(patching)} was not fine-tuned from {self.zero_shot}; "
                "delete it and run again"
            )
        return WeightPath(start, end).to(self.device)

    def task_loss(
        self, visual: nn.Module, task: str, split: str, autocast: torch.dtype | None = None
    ) -> TaskLoss:
        """Return a task's loss on one split as a function of the weights in `visual`.

        Args:
            visual: the image tower, on the run's device.
            task: its name.
            split: `train`, `validation` or `test`.
            autocast: half precision of the forward pass; None computes in float32.
        """
        batches = Batches(self.load_split(task, split), self.profile.batch_size, self.device)
        logits = clip.classifier(visual, self.head(task), self.profile.pixels, autocast)
        return TaskLoss(visual, batches, logits)

    @property
    def half(self) -> torch.dtype | None:
        """Return the precision losses are computed in: float16 on a GPU, as CLIP was trained."""
        return torch.float16 if self.device.type == "cuda" else None

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
        use_threads(1, self.device)
        curves = results.read_json(self.curves(patching))
        losses, _ = clip.load(self.curve_losses(patching))
        by_image = {task: losses[task].numpy() for task in (supported, patching)}
        path = self.path(patching)
        return Pair(self, supported, patching, self.empty_tower(), path, curves, by_image)

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
    by_image: dict[str, NDArray[np.float64]]  # task to validation losses, (alphas, images)

    @property
    def labels(self) -> dict[str, str]:
        """Return how the two tasks are written on pages."""
        return {role: self.run.profile.label(task) for role, task in self._tasks().items()}

    @property
    def device(self) -> str:
        """Return where the model is evaluated."""
        if self.run.device.type == "cuda":
            return torch.cuda.get_device_name(self.run.device)
        return "cpu"

    def objective(self, normalisation: str) -> PairObjective:
        """Return the pair's objective on validation images; the sampled curves cost nothing.

        Raises:
            ValueError: the normalisation is unknown.
        """
        tasks = self._tasks().values()
        curves = [self.curves["tasks"][task] for task in tasks]
        return PairObjective(
            self.path,
            [self.run.task_loss(self.visual, task, "validation", self.run.half) for task in tasks],
            [curve["classes"] for curve in curves],
            normalisation,
            known_scores(self.curves["alphas"], curves),
            losses={
                alpha: tuple(self.by_image[task][i] for task in tasks)
                for i, alpha in enumerate(self.curves["alphas"])
            },
        )

    def bootstrap(self, normalisation: str, draws: int = 500) -> tuple[float, float]:
        """Return the standard deviations of alpha* and of the minimum over redrawn images.

        Each draw takes as many images of each task as there are, with replacement, and minimises
        the sum of its curves, whose logarithms are interpolated by cubic splines.
        """
        generator = np.random.default_rng(0)
        alphas, dense = np.array(self.curves["alphas"]), np.linspace(0.0, 1.0, 4001)
        total = np.zeros((draws, len(dense)))
        for task in self._tasks().values():
            losses, classes = self.by_image[task], self.curves["tasks"][task]["classes"]
            images = losses.shape[1]
            counts = generator.multinomial(images, [1 / images] * images, draws)
            for row, curve in zip(total, counts @ losses.T / images, strict=True):
                scale = normaliser(normalisation, curve.tolist(), classes)
                row += (
                    np.exp(CubicSpline(alphas, np.log(curve))(dense)) - scale.offset
                ) / scale.unit
        return float(dense[total.argmin(1)].std()), float(total.min(1).std())

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
                role: plain(self.run.task_loss(self.visual, task, "test", self.run.half).score())
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


def plain(score: Score) -> dict[str, float]:
    """Return a score as results files hold it."""
    return {"loss": score.loss, "accuracy": score.accuracy}


def use_threads(count: int, device: torch.device) -> None:
    """Fix what sums depend on in this process: the threads, and the choice of algorithms."""
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)  # tiny moments of AdamW are slow otherwise
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # filling fresh memory is a debugging aid, and slow
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def free_device() -> tuple[torch.device, IO[str] | None]:
    """Return a GPU that no other step of this user uses here, and the lock that holds it.

    The first one is shared if all are taken; without any it is the CPU. The lock is dropped when
    its file is closed, at the latest when the process is gone.
    """
    for index in range(torch.cuda.device_count()):
        identity = torch.cuda.get_device_properties(index).uuid
        file = Path(tempfile.gettempdir()) / f"paintlib-{os.getuid()}-{identity}.lock"
        lock = file.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
        else:
            return torch.device("cuda", index), lock
    return torch.device("cuda" if torch.cuda.is_available() else "cpu"), None
