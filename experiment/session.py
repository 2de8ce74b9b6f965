"""What a step computes with: a device of its own, the image tower, and tasks turned into data."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn

from experiment import clip, pixels, results, weights
from experiment.locks import hold
from experiment.pixels import Batches
from experiment.profiles import refuse_unknown
from experiment.run import Run
from experiment.tasks import SPLITS, Split
from paintlib.interpolation import WeightPath
from paintlib.losses import TaskLoss
from paintlib.store import Store


class Session:
    """One process that computes with the model of a run, on a fixed number of threads."""

    def __init__(self, run: Run) -> None:
        self.run, real = run, run.profile.real
        # a GPU of its own; twins stay on the CPU, to the bit
        self.device, self._lock = free_device() if real else (torch.device("cpu"), None)
        # two threads of one process take half the memory of two processes, and hardly more time
        use_threads(2 if real and self.device.type == "cpu" else 1, self.device)

    @property
    def batch_size(self) -> int:
        """Return how many images are scored at once: small batches are the faster ones on a CPU."""
        most = self.run.profile.batch_size
        return min(most, 32) if self.run.profile.real and self.device.type == "cpu" else most

    def split(self, task: str, split: str) -> Split:
        run = self.run
        refuse_unknown([split], SPLITS, "unknown split")
        if not run.profile.real:
            tensors, _ = weights.load(run.images(task))
            return Split(tensors[f"{split}.images"], tensors[f"{split}.labels"])
        decoded = results.read_json(run.images(task))["splits"]
        if split not in decoded:
            raise ValueError(f"this run never trains on {task}: its {split} images are not decoded")
        try:
            return pixels.load(run.cache, decoded[split]["cache"], squashed=split == "train")
        except ValueError as error:
            raise ValueError(
                f"{error}; `python -m experiment decode {run.options} --data FOLDER {task}` does "
                "so, and repeats nothing else"
            ) from error

    def identity(self, task: str, split: str) -> str:
        """Return a digest of a task's images and labels on one split."""
        if self.run.profile.real:
            return str(results.read_json(self.run.images(task))["splits"][split]["cache"])
        return weights.metadata(self.run.images(task))["digest"]

    def tower(self, *, empty: bool = False) -> nn.Module:
        """Return the image tower with the zero-shot weights, or for a path to write into."""
        run = self.run
        if isinstance(run.profile.clip, str):
            visual = clip.empty_image_tower(run.profile.clip).to(self.device)
        else:  # the text tower is dropped, so its vocabulary does not matter
            small = run.profile.clip
            vocabulary = torch.zeros(1).long()
            model = clip.build_clip(small.embed_dim, small.vision, small.text, vocabulary)
            visual = model.visual.eval()
        if not empty:
            try:
                visual.load_state_dict(weights.load(run.zero_shot)[0])
            except RuntimeError as error:
                raise ValueError(
                    f"{run.zero_shot} is not of the profile's architecture: {error}; delete "
                    f"{run.folder} and run again"
                ) from error
        return visual

    def head(self, task: str) -> Tensor:
        """Return a task's zero-shot head `(classes, embed_dim)`, logit scale included."""
        return weights.load(self.run.head(task))[0]["head"].to(self.device)

    def path(self, patching: str) -> WeightPath:
        """Return the path from the zero-shot weights to those fine-tuned on a task."""
        start, parent = weights.load(self.run.zero_shot)
        end, child = weights.load(self.run.fine_tuned(patching))
        if child["parent"] != parent["digest"]:
            raise ValueError(
                f"{self.run.fine_tuned(patching)} was not fine-tuned from {self.run.zero_shot}; "
                "delete it and run again"
            )
        return WeightPath(start, end).to(self.device)

    def key(self, patching: str) -> dict[str, str]:
        """Return what the evaluations along one path are of: both ends, images and heads.

        The head of a twin is made with the weights at the start, which stand for it.
        """
        run = self.run
        ends = {"zero_shot": run.zero_shot, "fine_tuned": run.fine_tuned(patching)}
        key = {name: weights.metadata(file)["digest"] for name, file in ends.items()}
        key |= {} if run.choosing == "validation" else {"split": run.choosing}
        tasks = (*run.profile.supported, patching)
        key |= {f"images of {task}": self.identity(task, run.choosing) for task in tasks}
        heads = {f"head of {task}": weights.metadata(run.head(task))["digest"] for task in tasks}
        return key | (heads if run.profile.real else {})

    def stored(self, kind: str, name: str, key: dict[str, str]) -> Store:
        """Return what is evaluated; what is of other weights or images has another file."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        return Store(self.run.folder / kind / f"{name}-{digest}.npz", key)

    def losses(self, visual: nn.Module, tasks: Iterable[str], split: str,
               batch_size: int = 0) -> dict[str, TaskLoss]:  # fmt: skip
        """Return the loss of each task on one split as a function of the weights in `visual`."""
        return {t: self.loss(visual, t, self.split(t, split), batch_size) for t in tasks}

    def loss(self, visual: nn.Module, task: str, images: Split, batch_size: int = 0) -> TaskLoss:
        """Return the loss of a task on some images as a function of the weights in `visual`."""
        batches = Batches(images, batch_size or self.batch_size, self.device)
        return TaskLoss(
            visual, batches, clip.classifier(visual, self.head(task), self.run.profile.pixels)
        )


def use_threads(count: int, device: torch.device) -> None:
    """Fix what sums depend on in this process: threads, precision, the choice of algorithms."""
    torch.set_num_threads(count)
    # TF32 keeps 10 bits, and convolutions on a GPU take it unless they are told not to
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_flush_denormal(True)  # tiny moments of AdamW are slow otherwise
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # filling fresh memory is a debugging aid, and slow
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def free_device() -> tuple[torch.device, IO[str] | None]:
    """Return a GPU that no other step of this user has, else a shared one or the CPU; its lock."""
    for index in range(torch.cuda.device_count()):
        identity = torch.cuda.get_device_properties(index).uuid
        file = Path(tempfile.gettempdir()) / f"paintlib-{os.getuid()}-{identity}.lock"
        if lock := hold(file):
            return torch.device("cuda", index), lock
    return torch.device("cuda" if torch.cuda.is_available() else "cpu"), None
