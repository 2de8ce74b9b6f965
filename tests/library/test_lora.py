"""LoRA adapters: merged by hand, and next to PEFT where it is installed (the extra `dev`)."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from paintlib import WeightPath

WIDTH = 8


class Block(nn.Module):
    """Attention and a small MLP, with the names of their projections that PEFT looks for."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x):
        scores = self.q_proj(x) @ self.k_proj(x).mT / WIDTH**0.5
        x = x + scores.softmax(-1) @ self.v_proj(x)
        return x + self.down(self.up(x).relu())


class Transformer(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.patch = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, 5)
        self.eval()

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.patch(x.mT).mT.mean(1))


def adapter(folder, seed, config=(), **more):
    """Write an adapter of q_proj of both blocks as PEFT does, and return its factors."""
    folder.mkdir()
    fields = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **dict(config)}))
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for i in range(2):
        name = f"base_model.model.blocks.{i}.q_proj.lora_"
        factors[f"{name}A.weight"] = torch.randn(3, WIDTH, generator=generator)
        factors[f"{name}B.weight"] = torch.randn(WIDTH, 3, generator=generator)
    more = {f"base_model.model.{name}": tensor for name, tensor in more.items()}
    safetensors.torch.save_file(factors | more, folder / "adapter_model.safetensors")
    values = list(factors.values())
    return [up @ down for down, up in zip(values[::2], values[1::2], strict=True)]


def projections(model):
    return [block.q_proj.weight.detach() for block in model.blocks]


def test_adapter_is_scaled_by_its_product_not_its_factors(tmp_path):
    base, updates = Transformer(1), adapter(tmp_path / "one", 2)
    path, model = WeightPath.load(base, tmp_path / "one"), Transformer(0)
    for alpha in (0.0, 0.25, 1.0, 1.5):
        path.set_(model, alpha)
        for now, before, update in zip(*map(projections, (model, base)), updates, strict=True):
            torch.testing.assert_close(now, before + alpha * 2 * update, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, projections(path.set_(model, 0.0)), projections(base)))
    assert torch.equal(model.blocks[0].up.weight, base.blocks[0].up.weight)
    file = tmp_path / "one" / "adapter_model.safetensors"
    assert WeightPath.load(base, file).digests == path.digests
    assert WeightPath.load(file, base).digests == path.digests[::-1]


def test_two_adapters_are_interpolated_by_their_products(tmp_path):
    base = Transformer(1)
    one, two = adapter(tmp_path / "one", 2), adapter(tmp_path / "two", 3, {"lora_alpha": 3})
    model = Transformer(0)
    path = WeightPath.load(tmp_path / "one", tmp_path / "two", base=base)
    path.set_(model, 0.25)
    for now, before, a, b in zip(*map(projections, (model, base)), one, two, strict=True):
        torch.testing.assert_close(now, before + 1.5 * a + 0.25 * b, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="are adapters; name what they add to by base="):
        WeightPath.load(tmp_path / "one", tmp_path / "two")


def test_adapter_of_a_half_precision_base_keeps_its_small_updates(tmp_path):
    updates = adapter(tmp_path / "one", 2, {"lora_alpha": 1e-3})
    base = Transformer(1).bfloat16()
    path = WeightPath.load(base, tmp_path / "one")
    assert path.length > 0
    wide, half = path.set_(Transformer(0), 1.0), path.set_(Transformer(0).bfloat16(), 1.0)
    for now, rounded, before, update in zip(
        *map(projections, (wide, half, base)), updates, strict=True
    ):
        torch.testing.assert_close(now - before.float(), update * 1e-3 / 3, rtol=1e-2, atol=1e-6)
        assert torch.equal(rounded, now.bfloat16())
    path.save(tmp_path / "merged.safetensors", 1.0)
    saved = safetensors.torch.load_file(tmp_path / "merged.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert torch.equal(saved["blocks.0.q_proj.weight"], projections(half)[0])


def test_adapter_of_an_inner_model_finds_its_base(tmp_path):
    updates = adapter(tmp_path / "one", 2)
    outer = {f"model.{name}": tensor for name, tensor in Transformer(1).state_dict().items()}
    model = WeightPath.load(outer, tmp_path / "one").set_(Transformer(0), 1.0)
    for now, before, update in zip(
        *map(projections, (model, Transformer(1))), updates, strict=True
    ):
        torch.testing.assert_close(now, before + 2 * update, rtol=1e-5, atol=1e-5)


def test_whole_tensors_of_an_adapter_are_interpolated(tmp_path):
    head = {"head.weight": torch.ones(5, WIDTH)}
    adapter(tmp_path / "one", 2, **head)
    base = Transformer(1)
    model = WeightPath.load(base, tmp_path / "one").set_(Transformer(0), 0.5)
    torch.testing.assert_close(model.head.weight, (base.head.weight + 1) / 2)


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        ({"use_dora": True}, {}, "of type DoRA; merge it with PEFT"),
        ({"peft_type": "IA3"}, {}, "of type IA3; merge it with PEFT"),
        ({"init_lora_weights": "pissa"}, {}, "LoRA begun by 'pissa'.* merge it with PEFT"),
        ({}, {"blocks.0.up.lora_magnitude_vector": torch.ones(2)}, "not of a plain LoRA; merge"),
        ({}, {"blocks.0.up.lora_B.weight": torch.ones(12, 3)}, "'blocks.0.up.lora_B.weight' of"),
        ({}, {"tail.weight": torch.ones(2)}, "'tail.weight' .* has 0 places in its base; is it"),
        (
            {},
            {"head.weight": torch.ones(9, 8)},
            r"\(9, 8\) of .* does not fit \(5, 8\) of the base",
        ),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(tmp_path, config, more, said):
    adapter(tmp_path / "one", 2, config, **more)
    with pytest.raises(ValueError, match=said):
        WeightPath.load(Transformer(1), tmp_path / "one")


KINDS = {
    "linear": {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 5},
    "rank-stabilised": {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 5, "use_rslora": True},
    "patterns": {"target_modules": ["q_proj", "up", "down"], "r": 2, "lora_alpha": 4,
                 "rank_pattern": {"up": 3, "blocks.0.q_proj": 1},
                 "alpha_pattern": {"down": 7, r"blocks\.1\.q_proj": 9}},
    "embedding and convolution": {"target_modules": ["embed", "patch"], "r": 2, "lora_alpha": 3},
    "biases": {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 3, "lora_bias": True},
}  # fmt: skip


def trained(folder, seed, **options):
    """Return a PEFT model on the base of seed 1 whose factors are random, saved in `folder`."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Transformer(1), peft.LoraConfig(**options)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model


@pytest.mark.filterwarnings("ignore")  # PEFT's own, of models that are not transformers'
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_is_scaled_as_peft_rescales_it(kind, tmp_path):
    peft_model = trained(tmp_path / "one", 2, **KINDS[kind])
    from peft.helpers import rescale_adapter_scale

    path, model = WeightPath.load(Transformer(1), tmp_path / "one"), Transformer(0)
    tokens = torch.arange(22).reshape(2, 11) % 11
    with torch.no_grad():
        for alpha in (0.0, 0.3, 1.0):
            with rescale_adapter_scale(peft_model, alpha):
                expected = peft_model(tokens)
            torch.testing.assert_close(
                path.set_(model, alpha)(tokens), expected, rtol=1e-4, atol=1e-4
            )
        merged = peft_model.merge_and_unload().state_dict()
    for name, tensor in path.set_(model, 1.0).state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_are_interpolated_as_peft_adds_them(tmp_path):
    peft_model = trained(tmp_path / "one", 2, **KINDS["linear"])
    trained(tmp_path / "two", 3, **{**KINDS["linear"], "lora_alpha": 2})
    peft_model.load_adapter(str(tmp_path / "two"), "two")
    peft_model.base_model.add_weighted_adapter(
        ["default", "two"], [0.7, 0.3], "mean", combination_type="cat"
    )
    peft_model.set_adapter("mean")
    path = WeightPath.load(tmp_path / "one", tmp_path / "two", base=Transformer(1))
    tokens = torch.arange(22).reshape(2, 11) % 11
    with torch.no_grad():
        model = path.set_(Transformer(0), 0.3)
        torch.testing.assert_close(model(tokens), peft_model(tokens), rtol=1e-4, atol=1e-4)


class Mixed(nn.Module):
    """A square layer that keeps its weight as (in, out) beside one that does not, as GPT-2 has."""

    def __init__(self):
        super().__init__()
        conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
        torch.manual_seed(0)
        self.c_attn, self.c_proj = conv1d(3 * WIDTH, WIDTH), conv1d(WIDTH, WIDTH)
        self.score = nn.Linear(WIDTH, 5)
        self.grouped = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.eval()

    def forward(self, x):
        x = self.grouped(self.c_proj(self.c_attn(x)[..., :WIDTH]).mT).mT
        return self.score(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layers", "options", "said"),
    [
        (["c_attn", "score"], {}, None),  # the shapes tell
        (["c_attn", "score"], {"bias": "all"}, None),
        (["c_proj", "score"], {}, "c_proj.* is square, and may be of a Linear or a Conv1D; merge"),
        (["grouped"], {}, "is not of a plain LoRA; merge it with PEFT"),
    ],
)
def test_layers_of_several_kinds_are_merged_as_peft_does_or_refused(tmp_path, layers, options,
                                                                    said):  # fmt: skip
    peft = pytest.importorskip("peft")
    x = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(1))
    model = peft.get_peft_model(Mixed(), peft.LoraConfig(target_modules=layers, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (options and name.endswith("bias")):
                parameter.add_(0.1 * torch.randn_like(parameter))
        whole = model(x)
    model.save_pretrained(tmp_path / "lora")
    if said:
        with pytest.raises(ValueError, match=said):
            WeightPath.load(Mixed(), tmp_path / "lora")
    else:
        with torch.no_grad():
            patched = WeightPath.load(Mixed(), tmp_path / "lora").set_(Mixed(), 1.0)
            torch.testing.assert_close(patched(x), whole)


def test_adapters_of_other_kinds_are_refused_by_name(tmp_path):
    model = Transformer(0)
    adapter(tmp_path / "a", 1, {"alora_invocation_tokens": [1, 2]})
    with pytest.raises(ValueError, match="is an adapter of type aLoRA; merge it with PEFT"):
        WeightPath.load(model, tmp_path / "a")
    adapter(
        tmp_path / "b", 1, **{"embed.token_adapter.trainable_tokens_delta": torch.ones(1, WIDTH)}
    )
    with pytest.raises(ValueError, match="trainable_tokens_delta' .* is not of a plain LoRA"):
        WeightPath.load(model, tmp_path / "b")
