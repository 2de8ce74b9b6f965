import logging
import pickle
from collections import OrderedDict

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from open_clip import pretrained
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from experiment import clip
from experiment.real import checkpoints
from experiment.real.checkpoints import import_image_tower, pretrained_clip
from experiment.run import Run
from experiment.tasks import Task
from experiment.twins import small_clip

TASK = Task("Pets", ("cat", "small dog", "fish"), ("a photo of a {}.", "a {}."))
TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 11, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 10, "width": 64, "heads": 2, "layers": 2, "vocab_size": 9},
}
TENSORS = 32 + 9 * 12  # of the image tower
TOLERANCE = 1e-5


def transformers_clip(config, activation="quick_gelu"):
    """transformers' CLIP of an open_clip configuration, no two of its weights alike."""

    def tower(ours, **others):
        heads = ours.get("heads", ours["width"] // ours.get("head_width", 64))
        return {
            "hidden_act": activation,
            "projection_dim": config["embed_dim"],
            "hidden_size": ours["width"],
            "intermediate_size": 4 * ours["width"],
            "num_hidden_layers": ours["layers"],
            "num_attention_heads": heads,
            **others,
        }

    vision, text = config["vision_cfg"], config["text_cfg"]
    end = text["vocab_size"] - 1
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            vision_config=tower(vision, **{k: vision[k] for k in ("image_size", "patch_size")}),
            text_config=tower(
                text,
                vocab_size=text["vocab_size"],
                max_position_embeddings=text["context_length"],
                pad_token_id=0,
                bos_token_id=end - 1,
                eos_token_id=end,
            ),
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # fresh biases are 0 and scales 1: a swap would go unseen
                weight.add_(torch.randn_like(weight), alpha=0.1)
            elif name.endswith(("fc1.weight", "fc2.weight")):
                weight.mul_(2)  # a fresh network hardly leaves the linear part of its activation
    return model.eval()


def text_tower(state, layers):
    """transformers' text tower under open_clip's names, written out apart from checkpoints.py."""
    result = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
    }
    same = {"out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
            "c_fc": "mlp.fc1", "c_proj": "mlp.fc2"}  # fmt: skip
    for kind in ("weight", "bias"):
        result[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for i in range(layers):
            old, new = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            heads = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = torch.cat(heads)
            for ours, theirs in same.items():
                above = {"out_proj": "attn.", "c_fc": "mlp.", "c_proj": "mlp."}.get(ours, "")
                result[f"{new}.{above}{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return result


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@torch.no_grad()
def difference(theirs, ours, images, tokens):
    """Largest differences of unit image features, unit text features and cosines."""
    image, text = ours.encode_image(images, True), ours.encode_text(tokens, True)
    scale = ours.logit_scale.exp()
    cosines, expected = ours.get_logits(images, tokens)[0] / scale, theirs.logits_per_image / scale
    pairs = ((image, theirs.image_embeds), (text, theirs.text_embeds), (cosines, expected))
    return max(float((a - b).abs().max()) for a, b in pairs)


def prompts(count, length, vocabulary):
    """Token ids with the end of the text, the largest id, at different places."""
    tokens = torch.zeros(count, length, dtype=torch.int64)
    for i, row in enumerate(tokens):
        end = 3 + i % (length - 3)
        row[0], row[end] = vocabulary - 2, vocabulary - 1
        row[1:end] = torch.randint(1, vocabulary - 2, (end - 1,))
    return tokens


def written(tensors, folder, suffix):
    """Save tensors as either format and return the file."""
    path = folder / f"w{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """transformers' tiny CLIP, and open_clip's with its weights through import_image_tower."""
    theirs = transformers_clip(TINY)
    ours = open_clip.CLIP(**TINY).eval()
    path = written(theirs.state_dict(), tmp_path_factory.mktemp("clip"), ".safetensors")
    ours.visual.load_state_dict(import_image_tower(path, ours.visual.state_dict()))
    found = ours.load_state_dict(text_tower(theirs.state_dict(), 2), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("visual.") for name in found.missing_keys)
    return theirs, ours


@pytest.fixture
def tiny_in_open_clip(monkeypatch):
    """Let open_clip know the tiny architecture by name, with one tag of weights."""
    tag = {"hf_hub": "someone/clip/", "quick_gelu": True}
    for name, function in {
        "list_models": lambda: ["Tiny", "Tiny-quickgelu"],
        "get_model_config": lambda name: TINY | {"quick_gelu": name.endswith("-quickgelu")},
        "get_pretrained_cfg": lambda _, name: name == "tag" and tag,
    }.items():
        monkeypatch.setattr(open_clip, name, function)


@pytest.fixture(params=[".safetensors", ".pt"])
def suffix(request):
    return request.param


# parity with transformers


def test_open_clip_and_transformers_agree_unless_the_activation_is_wrong(tiny):
    theirs, ours = tiny
    tokens, images = prompts(6, 10, 9), torch.randn(4, 3, 32, 32)
    assert difference(theirs(tokens, images), ours, images, tokens) < TOLERANCE
    wrong = transformers_clip(TINY, "gelu")
    assert same(wrong.state_dict(), theirs.state_dict())
    assert difference(wrong(tokens, images), ours, images, tokens) > 100 * TOLERANCE


@pytest.mark.parametrize("swap", [("q_proj", "k_proj"), ("layer_norm1", "layer_norm2")])
def test_swapped_weights_are_seen_by_the_parity_test(tiny, tmp_path, swap):
    theirs, ours = tiny
    state = dict(theirs.vision_model.state_dict())
    for name in list(state):
        if swap[0] in name:
            other = name.replace(*swap)
            state[name], state[other] = state[other], state[name]
    path = written(state, tmp_path, ".safetensors")
    tower = import_image_tower(path, ours.visual.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        swapped = torch.func.functional_call(ours.visual, tower, images)
        worst = (F.normalize(swapped, dim=-1) - ours.encode_image(images, True)).abs().max()
    assert worst > 10 * TOLERANCE


def test_the_real_architecture_agrees_with_transformers(tmp_path):
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    with torch.device("meta"):
        shapes = open_clip.CLIP(**config).visual.state_dict()
    assert len(shapes) == 152 and sum(t.numel() for t in shapes.values()) == 87_849_216
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2  # the others are alike
    theirs, ours = transformers_clip(config), open_clip.CLIP(**config).eval()
    path = written(theirs.state_dict(), tmp_path, ".safetensors")
    tower = import_image_tower(path, ours.visual.state_dict())
    assert all(tower[name].shape == shapes[name].shape for name in tower)
    ours.visual.load_state_dict(tower)
    ours.load_state_dict(text_tower(theirs.state_dict(), 2), strict=False)
    tokens, images = prompts(2, 77, 49408), torch.randn(2, 3, 224, 224)
    tokens[1, 30:] = 49407  # nothing after the end of a text counts
    with torch.no_grad():
        assert difference(theirs(tokens, images), ours, images, tokens) < TOLERANCE


def test_zero_shot_head_matches_transformers_text_tower():
    texts = [prompt for name in TASK.classnames for prompt in TASK.prompts(name)]
    tokenize = small_clip.Tokenizer.covering(texts, 10)
    config = TINY | {"text_cfg": TINY["text_cfg"] | {"vocab_size": len(tokenize.vocabulary)}}
    theirs, ours = transformers_clip(config), open_clip.CLIP(**config).eval()
    ours.load_state_dict(text_tower(theirs.state_dict(), 2), strict=False)
    head = clip.zero_shot_head(ours, tokenize, TASK)
    scale = theirs.logit_scale.exp()
    with torch.no_grad():
        for row, name in zip(head, TASK.classnames, strict=True):
            pooled = theirs.text_model(tokenize(list(TASK.prompts(name)))).pooler_output
            mean = F.normalize(theirs.text_projection(pooled), dim=-1).mean(0)
            expected = F.normalize(mean, dim=0)
            assert (row / scale - expected).abs().max() < TOLERANCE
            assert float(row.norm()) == pytest.approx(float(scale), rel=1e-5)


# reading image towers


def test_transformers_classes_give_the_same_tower(tiny, tmp_path, suffix):
    theirs, ours = tiny
    expected = ours.visual.state_dict()
    state = theirs.state_dict()
    vision = theirs.config.vision_config
    projected = CLIPVisionModelWithProjection(vision)
    projected.load_state_dict({n: t for n, t in state.items() if n.startswith("vis")})
    bare = CLIPVisionModel(vision)
    bare.load_state_dict(theirs.vision_model.state_dict())
    old = {f"vision_model.{n}": t for n, t in theirs.vision_model.state_dict().items()}
    old["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    for tensors in (state, projected.state_dict(), bare.state_dict(), old, wrapped):
        path = written(tensors, tmp_path, suffix)
        assert same(import_image_tower(path, expected), expected)


def test_projection_comes_from_the_file_where_it_has_one(tiny, tmp_path):
    theirs, ours = tiny
    expected = ours.visual.state_dict()
    reference = expected | {"proj": torch.ones_like(expected["proj"])}
    with_it = written(theirs.state_dict(), tmp_path, ".pt")
    assert same(import_image_tower(with_it, reference), expected)
    without = written(theirs.vision_model.state_dict(), tmp_path, ".safetensors")
    tower = import_image_tower(without, reference)
    assert same(tower, reference)
    assert tower["proj"].data_ptr() != reference["proj"].data_ptr()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "image_encoder.model.", "module.image_encoder.model."]
)
def test_open_clip_state_dicts_round_trip(tiny, tmp_path, suffix, prefix):
    _, ours = tiny
    expected = ours.visual.state_dict()
    whole = {f"{prefix}{name}": tensor for name, tensor in ours.state_dict().items()}
    whole["classification_head.weight" if prefix else "context_length"] = torch.tensor([77])
    bare = {f"{prefix}{name}": tensor for name, tensor in expected.items()}
    for state in (whole, bare):
        tower = import_image_tower(written(state, tmp_path, suffix), expected)
        assert same(tower, expected) and list(tower) == list(expected)


def test_half_precision_training_checkpoints_and_parameters_are_read(tiny, tmp_path):
    reference = tiny[1].visual.state_dict()
    half = OrderedDict((f"visual.{name}", t.half()) for name, t in reference.items())
    path = written({"epoch": 3, "state_dict": half}, tmp_path, ".pt")
    tower = import_image_tower(path, reference)
    assert all(tensor.dtype == torch.float32 for tensor in tower.values())
    assert torch.equal(tower["proj"], half["visual.proj"].float())
    path = written(dict(tiny[1].visual.named_parameters()), tmp_path, ".pt")
    assert not any(t.requires_grad for t in import_image_tower(path, reference).values())


def test_the_tower_of_a_resnet_is_read(tmp_path):
    config = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    model = open_clip.CLIP(**TINY | {"vision_cfg": config})
    path = written(model.state_dict(), tmp_path, ".safetensors")
    expected = model.visual.state_dict()
    assert same(import_image_tower(path, expected), expected)


def test_tensors_that_do_not_fit_are_refused_by_name(tiny, tmp_path):
    theirs, ours = tiny
    reference = ours.visual.state_dict()
    less = {n: t for n, t in reference.items() if not n.startswith("ln_p")}
    wide = {"proj": torch.ones(64, 7), "ln_pre.bias": torch.ones(3)}
    nan = {"proj": reference["proj"] * float("nan"), "ln_pre.bias": torch.full((64,), torch.inf)}
    vision, query = theirs.vision_model.state_dict(), "encoder.layers.0.self_attn.q_proj.bias"
    gone = {n: t for n, t in vision.items() if "layers.1.self_attn.v_proj.bias" not in n}
    # the three together have the right length
    uneven = vision | {query: torch.ones(96), query.replace("q_", "v_"): torch.ones(32)}
    for tensors, match in (
        (less, rf"w\.pt does not fit the {TENSORS} .* 4 missing, first: 'ln_post.bias' \(64,\); u"),
        (reference | {"b": torch.ones(1), "a": torch.ones(1)}, r"2 unexpected, first: 'a' \(1,\)"),
        (reference | wide, r": 2 missing, .* 'ln_pre.bias' \(64,\); 2 unex.* 'ln_pre.bias' \(3,\)"),
        (less | {"a": torch.ones(1), "proj": torch.ones(2)}, "5 missing.* 2 unexpected, first: 'a"),
        ({"weight": torch.ones(2)}, "0 image towers, .* 1 tensors, first: 'weight'; understood"),
        ({}, r"w\.pt holds no state dict"),
        (torch.ones(3), r"w\.pt holds no state dict"),
        ({f"{s}.{n}": t for n, t in reference.items() for s in "ab"}, "2 image towers"),
        (reference | nan, "2 tensors with NaN or infinity, first: 'ln_pre.bias'"),
        (gone, r"1 missing, first: '.*\.1.attn.in_proj_bias' .*; 2 unexpected"),
        (uneven, r"1 missing, first: '.*\.0.attn.in_proj_bias' .*; 3 unexpected"),
    ):
        with pytest.raises(ValueError, match=match):
            import_image_tower(written(tensors, tmp_path, ".pt"), reference)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [None, 2, 4])
def test_a_malicious_pickle_is_not_executed(tmp_path, protocol, nested):
    evil, path = Evil(tmp_path / "executed"), tmp_path / "evil.pt"
    content = {"conv1.weight": [1.0], "x": evil} if nested else evil
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    for read in (
        lambda: import_image_tower(path, {}),
        lambda: pretrained_clip(weights=str(path)),
    ):
        with pytest.raises(ValueError, match=r"evil\.pt holds more than .* none of it was run"):
            read()
    assert not evil.path.exists()


def test_a_pickled_model_is_refused_with_the_remedy(tiny, tmp_path):
    path = written(tiny[1].visual, tmp_path, ".pt")
    match = r"\(open_clip\.transformer\.VisionTransformer\).*torch\.save\(model\.state_dict"
    with pytest.raises(ValueError, match=match):
        import_image_tower(path, {})


def test_unreadable_and_truncated_files_are_refused(tiny, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    with pytest.raises(FileNotFoundError, match="is not there"):
        import_image_tower(path, {})
    whole = written(tiny[1].visual.state_dict(), tmp_path, suffix).read_bytes()
    for content in (b"", b"no weights", b"PK\x03\x04", b"\x80\x02N.", whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"w\{suffix} "):
            import_image_tower(path, {})
    with pytest.raises(ValueError, match="cannot be read as .* fetch it again"):
        import_image_tower(path, {})


# whole CLIPs


def test_a_local_clip_is_built_silently_and_exactly(
    tiny, tiny_in_open_clip, tmp_path, suffix, capfd, caplog
):
    _, ours = tiny
    path = written({f"module.{n}": t for n, t in ours.state_dict().items()}, tmp_path, suffix)
    handlers = list(logging.getLogger().handlers)
    built = pretrained_clip("Tiny-quickgelu", str(path))
    assert isinstance(built, open_clip.CLIP) and not built.training
    assert same(built.state_dict(), ours.state_dict())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in built.parameters())
    assert same(dict(built.named_buffers()), dict(ours.named_buffers()))
    tokens, images = prompts(3, 10, 9), torch.randn(2, 3, 32, 32)
    assert torch.equal(built.encode_text(tokens), ours.encode_text(tokens))
    assert torch.equal(built.encode_image(images), ours.encode_image(images))
    assert logging.getLogger().handlers == handlers and not caplog.records
    assert capfd.readouterr() == ("", "")


def test_random_weights_follow_torchs_generator(tiny_in_open_clip):
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(pretrained_clip("Tiny-quickgelu", "random").state_dict())
    assert same(built[0], built[1]) and not same(built[0], built[2])


def test_a_file_that_is_another_clip_is_refused(tiny, tiny_in_open_clip, tmp_path):
    theirs, ours = tiny
    less = {n: t for n, t in ours.state_dict().items() if n != "logit_scale"}
    for tensors, match in (
        (less, "1 missing, first: 'logit_scale' .*; is it Tiny-quickgelu"),
        (ours.visual.state_dict(), "0 image towers, told by 'visual.* give `model.state"),
        (theirs.state_dict(), "0 image towers, told by 'visual.* give `model.state"),
    ):
        with pytest.raises(ValueError, match=match):
            pretrained_clip("Tiny-quickgelu", str(written(tensors, tmp_path, ".pt")))


@pytest.mark.parametrize(
    ("name", "weights", "match"),
    [
        ("ViTB32", "openai", "'ViTB32' is no architecture with both towers of open_clip"),
        ("ViT-B-32", "opnai", "WEIGHTS=opnai is no file, and none of the tags of ViT-B-32: openai"),
        ("ViT-B-32", "openai", "with QuickGELU; use 'ViT-B-32-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion2b_e16", "with GELU; use 'ViT-B-32'"),
        ("coca_ViT-B-32", "random", "coca_ViT-B-32' is no architecture with both"),
        ("ViT-B-16-SigLIP", "random", "SigLIP' is no architecture with both"),
        ("roberta-ViT-B-32", "random", "roberta-ViT-B-32' is no architecture with both"),
    ],
)
def test_names_that_do_not_fit_are_refused(name, weights, match, monkeypatch):
    tag = open_clip.get_pretrained_cfg("ViT-B-32", weights)
    if weights == "laion2b_e16":
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag)
    with pytest.raises(ValueError, match=match):
        pretrained_clip(name, weights)


def offline(*_, **__):
    raise LocalEntryNotFoundError("no connection\nand a second line")


def test_a_tag_is_downloaded_or_a_remedy_that_works_is_given(
    tiny, tiny_in_open_clip, tmp_path, monkeypatch
):
    expected = tiny[1].state_dict()
    path = written(expected, tmp_path, ".safetensors")
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda **_: str(path))
    assert same(pretrained_clip("Tiny-quickgelu", "tag").state_dict(), expected)
    monkeypatch.setattr(pretrained, "hf_hub_download", offline)
    with pytest.raises(RuntimeError, match="weights 'tag' of Tiny-q.* no connection") as failure:
        pretrained_clip("Tiny-quickgelu", "tag")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: tiny[1])
    exec("\n".join(line.strip() for line in str(failure.value).splitlines()[1:]))
    assert same(pretrained_clip("Tiny-quickgelu", "clip.safetensors").state_dict(), expected)


# fine-tuned checkpoints


def test_hub_checkpoints_cover_the_patching_tasks(monkeypatch, tmp_path):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    paths = {checkpoints.hub_checkpoint(task) for task in checkpoints.HUB}
    assert paths == {tmp_path / "model.safetensors"}
    assert len(set(asked)) == 9
    assert ("tanganke/clip-vit-base-patch32_stanford-cars", "model.safetensors") in asked
    with pytest.raises(ValueError, match="known of 'CIFAR10'; choose one of Cars, DTD, E"):
        checkpoints.hub_checkpoint("CIFAR10")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    match = r"patch32_dtd \(LocalEntryNotFoundError: no connection\); .*FINETUNED=FOLDER with DTD"
    with pytest.raises(RuntimeError, match=match):
        checkpoints.hub_checkpoint("DTD")


def test_given_checkpoints_are_found_by_name(tmp_path):
    given = Run.of("paper", finetuned=str(tmp_path)).given
    for suffix in ("pt", "safetensors"):  # which is preferred
        assert given("Cars") == []
        (tmp_path / f"DTD.{suffix}").touch()
        assert given("DTD") == [str(tmp_path / f"DTD.{suffix}")]
