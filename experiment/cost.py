"""What the profile `paper` costs, counted and not measured: pictures, passes, operations, bytes.

Rates that `benchmarks/throughput.py` measures turn counts into hours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiment.profiles import ALPHAS, PROFILES
from experiment.real.facts import DATA_SETS

MODEL = str(PROFILES["paper"].clip)
RECIPE = PROFILES["paper"].finetuning
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
        """Return the floating-point operations of the step."""
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


def cached_pictures(supported: Sequence[str], patching: Sequence[str]) -> dict[str, int]:
    """Return how many pictures of a data set are decoded; supported ones are never trained on."""
    kept = {name: DATA_SETS[name].validation + DATA_SETS[name].test for name in supported}
    return kept | {name: DATA_SETS[name].train + DATA_SETS[name].test for name in patching}


def steps(supported: Sequence[str], patching: Sequence[str], *, fresh: float, answers: float
) -> dict[str, Work]:  # fmt: skip
    """Count the work of each step of the profile `paper`.

    A pair evaluates `fresh` alphas beyond its samples, and `answers` on test pictures, on average.
    """
    kept = [DATA_SETS[name] for name in supported]
    validation, test = sum(data.validation for data in kept), sum(data.test for data in kept)
    solving = 0.0
    for own in (DATA_SETS[name] for name in patching):
        solving += own.validation + own.test  # its own task at the zero-shot weights
        solving += (len(ALPHAS) - 1) * (validation + own.validation) + test + own.test
        solving += fresh * (validation + len(kept) * own.validation)
        solving += answers * (test + len(kept) * own.test)
    decoded = cached_pictures(supported, patching)
    return {
        "decode": Work(len(decoded), decoded=sum(decoded.values())),
        "head": Work(len(decoded), prompts=sum(DATA_SETS[name].prompts for name in decoded)),
        "finetune": Work(len(patching), training=len(patching) * RECIPE.steps * RECIPE.batch_size),
        "baseline": Work(1, forward=validation + test, training=validation),
        "solve": Work(len(patching), forward=round(solving)),
    }
