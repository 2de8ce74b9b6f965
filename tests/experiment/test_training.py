import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from experiment import clip as module
from experiment import training
from experiment.profiles import Recipe, Standard
from experiment.tasks import Split

RECIPE = Recipe(steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=3, checkpoint_every=4)
IMAGES = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
SPLIT = Split(IMAGES, torch.arange(40) % 3)
PIXELS = Standard((0.5, 0.5, 0.5), (0.28, 0.28, 0.28))
HEAD = torch.nn.functional.normalize(torch.eye(3, 8), dim=1) * 5


def tower() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 8), nn.LayerNorm(8))


def finetune(model, seed=0, recipe=RECIPE, **options):
    logits = module.classifier(model, HEAD, PIXELS)
    return training.finetune(model, logits, SPLIT, recipe, seed=seed, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_finetune_lowers_the_loss_and_leaves_the_head_alone():
    model, head = tower(), HEAD.clone()
    steps = list(finetune(model))
    assert [number for number, _ in steps] == list(range(1, 13))
    assert steps[-1][1] < steps[0][1]
    assert torch.equal(head, HEAD) and not model.training


@pytest.mark.parametrize("killed_after", [1, 4, 7, 8, 11])
def test_killed_and_resumed_training_ends_at_the_same_weights(tmp_path, killed_after):
    whole, resumed = tower(), tower()
    list(finetune(whole))
    checkpoint = tmp_path / "c.safetensors"
    list(itertools.islice(finetune(tower(), checkpoint=checkpoint), killed_after))
    rest = [number for number, _ in finetune(resumed, checkpoint=checkpoint)]
    assert rest == list(range(killed_after // 4 * 4 + 1, 13))
    assert same(whole, resumed)


def test_pretraining_resumes_to_the_same_weights(tmp_path):
    def clip():
        torch.manual_seed(0)
        vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
        text = {"context_length": 6, "width": 16, "heads": 2, "layers": 1}
        return module.build_clip(8, vision, text, torch.arange(9))

    tokens = torch.tensor([[7, i, 8, 0, 0, 0] for i in range(1, 5)])
    captions = torch.arange(40) % 4

    def steps(model, checkpoint=None):
        return training.pretrain(
            model, IMAGES, tokens, captions, PIXELS, RECIPE, seed=0, checkpoint=checkpoint
        )

    whole, resumed = clip(), clip()
    losses = [float(loss) for _, loss in steps(whole)]
    assert losses[-1] < losses[0]
    list(itertools.islice(steps(clip(), tmp_path / "c"), 6))
    assert len(list(steps(resumed, tmp_path / "c"))) == 8
    assert same(whole, resumed)


def test_seed_decides_the_result():
    one, two, other = tower(), tower(), tower()
    list(finetune(one, seed=1))
    list(finetune(two, seed=1))
    list(finetune(other, seed=2))
    assert same(one, two) and not same(one, other)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    list(itertools.islice(finetune(tower(), checkpoint=checkpoint), 5))
    with pytest.raises(ValueError, match=r"c\.safetensors was left by a run with other settings"):
        list(finetune(tower(), seed=1, checkpoint=checkpoint))
    moved, swapped = tower(), tower()
    with torch.no_grad():
        moved[2].weight.add_(1.0)
        swapped[2].weight.copy_(swapped[2].weight.flip(1))  # of the same sum
    for other in (moved, swapped):
        with pytest.raises(ValueError, match="other settings, images or starting weights"):
            list(finetune(other, checkpoint=checkpoint))
    with pytest.raises(ValueError, match="other settings, images or starting weights"):
        list(finetune(tower(), identity="other images", checkpoint=checkpoint))
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"c\.safetensors cannot be read"):
        list(finetune(tower(), checkpoint=checkpoint))


def test_diverged_training_is_an_error():
    wild = dataclasses.replace(RECIPE, learning_rate=float("inf"))
    with pytest.raises(ValueError, match=r"training loss is nan at step \d+: the run diverged"):
        list(finetune(tower(), recipe=wild))


def test_rate_warms_up_and_decays():
    rates = [RECIPE.rate(step) for step in range(12)]
    # PAINT's schedule: linear over the warm-up, then a cosine over the steps that remain
    assert rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert rates[3:] == pytest.approx([5e-3 * (1 + math.cos(math.pi * i / 9)) for i in range(9)])


def test_batches_cover_each_epoch_once():
    rows = torch.cat([training.batch(40, 8, step, seed=3) for step in range(5)])
    assert sorted(rows.tolist()) == list(range(40))
    assert not torch.equal(rows[:8], training.batch(40, 8, 5, seed=3))
    with pytest.raises(ValueError, match="batch of 8 cannot be drawn from 5"):
        training.batch(5, 8, 0, seed=0)
