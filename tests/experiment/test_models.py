import math
import os
import struct

import pytest
import torch
import torch.nn.functional as F

from experiment import clip as module
from experiment import weights
from experiment.profiles import Standard
from experiment.tasks import Task
from experiment.twins import small_clip

VISION = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
TEXT = {"context_length": 10, "width": 16, "heads": 2, "layers": 1}
PIXELS = Standard((0.5, 0.5, 0.5), (0.28, 0.28, 0.28))
TASK = Task("Pets", ("cat", "small dog", "fish"), ("a photo of a {}.", "a {}."))


@pytest.fixture(scope="module")
def clip():
    prompts = [p for name in TASK.classnames for p in TASK.prompts(name)]
    tokenize = small_clip.Tokenizer.covering(prompts, 10)
    torch.manual_seed(0)
    return module.build_clip(8, VISION, TEXT, tokenize.vocabulary).eval(), tokenize


def test_tokenizer_is_a_renumbering_that_keeps_order(clip):
    import open_clip

    _, tokenize = clip
    texts = ["a cat.", "a photo of a small dog."]
    ids = open_clip.SimpleTokenizer(context_length=10)(texts)
    assert torch.equal(tokenize.vocabulary[tokenize(texts)], ids)
    assert torch.equal(tokenize(texts).argmax(1), ids.argmax(1))  # where open_clip pools the text
    with pytest.raises(ValueError, match="1 texts use tokens .* first: 'a zebra.'"):
        tokenize(["a cat.", "a zebra."])


def test_zero_shot_head_matches_a_plain_computation_prompt_by_prompt(clip):
    model, tokenize = clip
    head = module.zero_shot_head(model, tokenize, TASK)
    with torch.no_grad():
        for row, name in zip(head, TASK.classnames, strict=True):
            each = [model.encode_text(tokenize([p]))[0] for p in TASK.prompts(name)]
            mean = torch.stack([e / e.norm() for e in each]).mean(0)
            torch.testing.assert_close(row, mean / mean.norm() * model.logit_scale.exp())
    scale = math.exp(model.logit_scale.item())
    assert float(head.norm(dim=1)[0]) == pytest.approx(scale, rel=1e-5)


def test_classifier_matches_clips_own_logits(clip):
    model, tokenize = clip
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    one = Task("One", TASK.classnames, ("a {}.",))
    head = module.zero_shot_head(model, tokenize, one)
    with torch.no_grad():
        pixels = (images.float() / 255 - 0.5) / 0.28
        expected, _ = model.get_logits(pixels, tokenize(["a cat.", "a small dog.", "a fish."]))
        torch.testing.assert_close(module.classifier(model.visual, head, PIXELS)(images), expected)


def test_half_precision_is_close_and_returns_the_weights_own(clip):
    model, tokenize = clip
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    head = module.zero_shot_head(model, tokenize, TASK)
    with torch.inference_mode():
        exact = module.classifier(model.visual, head, PIXELS)(images)
        half = module.classifier(model.visual, head, PIXELS, torch.bfloat16)(images)
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02 * float(head.norm(dim=1).max()))


def test_head_can_be_trained_against(clip):
    model, tokenize = clip
    head = module.zero_shot_head(model, tokenize, TASK)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    F.cross_entropy(
        module.classifier(model.visual, head, PIXELS)(images), torch.tensor([0, 1])
    ).backward()
    assert not head.requires_grad and model.visual.proj.grad is not None


def test_save_and_load_are_exact(tmp_path):
    tensors = {"b": torch.randn(3, 4).T, "a": torch.tensor([-0.0, math.inf]), "n": torch.arange(3)}
    digest = weights.save(tmp_path / "new" / "w.safetensors", tensors, task="Pets", seed=3)
    loaded, metadata = weights.load(tmp_path / "new" / "w.safetensors")
    assert metadata == {"task": "Pets", "seed": "3", "digest": digest}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert os.listdir(tmp_path / "new") == ["w.safetensors"]


def test_load_refuses_truncated_altered_and_missing_files(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"w\.safetensors cannot be read .* rebuild it"):
            weights.load(path)
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    altered = bytearray(whole)
    altered[start + 40] ^= 1
    path.write_bytes(bytes(altered))
    with pytest.raises(ValueError, match=r"w\.safetensors does not hold what was written"):
        weights.load(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"w\.safetensors cannot be read"):
        weights.load(path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.save(path, {"a": torch.ones(2)})

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        weights.save(path, {"a": torch.zeros(2)})
    assert torch.equal(weights.load(path)[0]["a"], torch.ones(2))
    assert os.listdir(tmp_path) == ["w.safetensors"]
