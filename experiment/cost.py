"""What the profile `paper` costs, counted and not measured: pictures, passes, operations, bytes."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiment.profiles import ALPHAS
from experiment.real.facts import DATA_SETS, size, splits
from experiment.run import Run

PAPER = Run.of("paper")
MODEL = str(PAPER.profile.clip)
CACHE_BYTES = 3 * 224 * 224  # of one decoded picture, uint8


class Flops(NamedTuple):
    """Floating-point operations of one input; a multiply-add is two."""

    image: int  # one picture through the image tower
    text: int  # one prompt through the text tower
    training: int  # one picture forward and backward, weight gradients only
    image_parameters: int  # weights of the image tower
    parameters: int  # weights of both towers


class Work(NamedTuple):
    """What one step of the workflow does, all its jobs together."""

    jobs: int  # they can run side by side
    decoded: int = 0  # pictures read from disk and resized
    prompts: int = 0  # texts through the text tower
    forward: int = 0  # pictures through the image tower, forward only
    training: int = 0  # pictures through the image tower, forward and backward

    def flops(self, per: Flops) -> int:
        return self.prompts * per.text + self.forward * per.image + self.training * per.training

    def hours(self, per: Flops, rates: Mapping[str, float]) -> float:
        """Return the hours at `rates` (pictures a second); a prompt counts by its operations."""
        forward = self.forward + self.prompts * per.text / per.image
        counts = {"decode": self.decoded, "forward": forward, "training": self.training}
        return sum(count / rates[work] for work, count in counts.items()) / 3600


def clip_flops() -> Flops:
    """Count the operations of the profile's CLIP without allocating its weights; needs torch."""
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config: dict[str, Any] = open_clip.get_model_config(MODEL)
    with torch.device("meta"):
        clip = open_clip.CLIP(**config)
        picture = torch.empty(1, 3, *clip.visual.image_size)
        text = torch.empty(1, config["text_cfg"]["context_length"], dtype=torch.int64)
    with FlopCounterMode(display=False) as count:
        features = clip.visual(picture)
        image = count.get_total_flops()
        features.sum().backward()
        training = count.get_total_flops()
        clip.encode_text(text)
        prompt = count.get_total_flops() - training
    weights = (sum(p.numel() for p in part.parameters()) for part in (clip.visual, clip))
    return Flops(image, prompt, training, *weights)


def cached_pictures(run: Run = PAPER) -> dict[str, int]:
    """Return how many pictures of each data set are decoded."""
    return {name: sum(splits(run, name).values()) for name in run.profile.tasks}


def steps(run: Run = PAPER, *, fresh: float, answers: float) -> dict[str, Work]:
    """Count the work of each step of a run of the profile `paper`.

    A pair evaluates `fresh` alphas beyond its samples, and `answers` on test pictures, on average.
    Halves of the test images are searched each for itself, beside all of them.
    """
    supported, patching = run.profile.supported, run.profile.patching
    chosen, test = (sum(size(run, name, s) for name in supported) for s in (run.choosing, "test"))
    apart = run.choosing != "test"  # else test images are scored already
    fresh *= 3 if run.chosen_on == "halves" else 1
    solving = 0.0
    for name in patching:
        own, own_test = size(run, name, run.choosing), size(run, name, "test")
        solving += own + len(ALPHAS) * (chosen + own)  # the start, the curves and the noise
        solving += fresh * (chosen + len(supported) * own)
        further = answers * (test + len(supported) * own_test)
        solving += apart * (own_test + test + own_test + further)
    decoded, recipe = cached_pictures(run), run.profile.finetuning
    trained = len(patching) * recipe.steps * recipe.batch_size if run.source == "own" else 0
    looked = [min(size(run, name, "test"), 2000) for name in (*decoded, *patching)]
    return {
        "decode": Work(len(decoded), decoded=sum(decoded.values())),
        "head": Work(len(decoded), prompts=sum(DATA_SETS[name].prompts for name in decoded)),
        "verify": Work(len(looked), forward=sum(looked)),
        "finetune": Work(len(patching), training=trained),
        "baseline": Work(1, forward=chosen + apart * test, training=chosen),
        "solve": Work(len(patching), forward=round(solving)),
    }


def estimate(run: Run) -> None:
    """Print what is to be computed and stored, and the hours by a batch that is timed now."""
    profile = run.profile
    pairs = [run.pair(s, p) for s in profile.supported for p in profile.patching]
    if profile.limit or all(file.exists() for file in pairs):
        return
    # on average of the pairs of the profile micro
    work = steps(run, fresh=3.6, answers=3.0)
    per, rate = clip_flops(), images_per_second()
    rates = {"forward": rate, "training": rate * per.image / per.training, "decode": math.inf}
    hours = sum(step.hours(per, rates) for step in work.values())
    forward, training = (sum(getattr(w, f) for w in work.values()) for f in ("forward", "training"))
    pictures = sum(cached_pictures(run).values())
    towers = per.parameters + len(profile.patching) * per.image_parameters
    stored = pictures * CACHE_BYTES + 4 * towers
    what = f"a sample of {profile.sample} images a split" if profile.sample else "all images"
    print(
        f"paintlib: {run.name}, {what}: {forward:,} forward passes of an image, {training:,} "
        f"forward and backward; about {hours:,.1f} hours one job after the other at the "
        f"{rate:.1f} images per second measured now, less with more CORES or GPUs; "
        f"{stored / 1e9:.1f} GB of decoded images and weights",
        flush=True,
    )


def images_per_second() -> float:
    """Time a batch of the image tower, with random weights, as one step of a run scores it."""
    import torch

    from experiment.clip import empty_image_tower
    from experiment.session import use_threads

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_threads(2, device)
    tower = empty_image_tower(MODEL).to(device)
    images = torch.randn(32 if device.type == "cpu" else 128, 3, 224, 224, device=device)
    with torch.inference_mode():
        for weight in tower.parameters():
            weight.normal_(0, 0.02)
        float(tower(images).sum())  # the first one also sets up
        start = time.perf_counter()
        float(tower(images).sum())
    return len(images) / (time.perf_counter() - start)
