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
from experiment.tasks import Task

TASK = Task("Pets", ("cat", "small dog", "fish"), ("a photo of a {}.", "a {}."), "Pets")
TINY = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 10, "width": 64, "heads": 2, "layers": 2, "vocab_size": 9},
}
TOLERANCE = 1e-5


def transformers_clip(config, activation="quick_gelu"):
    """transformers' CLIP of an open_clip configuration, no two of its weights alike."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    eot = text["vocab_size"] - 1
    shared = {"hidden_act": activation, "projection_dim": config["embed_dim"]}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config["embed_dim"],
            vision_config=shared
            | {
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision.get("head_width", 64),
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
            },
            text_config=shared
            | {
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                "pad_token_id": 0,
                "bos_token_id": eot - 1,
                "eos_token_id": eot,
            },
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
    for kind in ("weight", "bias"):
        result[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        for i in range(layers):
            old, new = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            heads = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            result[f"{new}.attn.in_proj_{kind}"] = torch.cat(heads)
            result[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
            result[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
            result[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
            result[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
            result[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """transformers' tiny CLIP, and open_clip's with its weights through import_image_tower."""
    theirs = transformers_clip(TINY)
    ours = open_clip.CLIP(**TINY).eval()
    path = tmp_path_factory.mktemp("clip") / "whole.safetensors"
    save_file(theirs.state_dict(), path)
    ours.visual.load_state_dict(
        checkpoints.import_image_tower(path, ours.visual.state_dict()), strict=True
    )
    found = ours.load_state_dict(text_tower(theirs.state_dict(), 2), strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("visual.") for name in found.missing_keys)
    return theirs, ours


@pytest.fixture
def tiny_in_open_clip(monkeypatch):
    """Let open_clip know the tiny architecture by name."""
    monkeypatch.setattr(open_clip, "list_models", lambda: ["Tiny", "Tiny-quickgelu"])
    monkeypatch.setattr(
        open_clip,
        "get_model_config",
        lambda name: TINY | {"quick_gelu": name.endswith("-quickgelu")},
    )


# parity with transformers


def test_open_clip_and_transformers_agree_on_the_same_weights(tiny):
    theirs, ours = tiny
    tokens, images = prompts(6, 10, 9), torch.randn(4, 3, 32, 32)
    assert difference(theirs(tokens, images), ours, images, tokens) < TOLERANCE


def test_a_wrong_activation_is_seen_by_the_parity_test(tiny):
    theirs, ours = tiny
    wrong = transformers_clip(TINY, "gelu")
    assert same(wrong.state_dict(), theirs.state_dict())
    tokens, images = prompts(6, 10, 9), torch.randn(4, 3, 32, 32)
    assert difference(wrong(tokens, images), ours, images, tokens) > 100 * TOLERANCE


@pytest.mark.parametrize("swap", [("q_proj", "k_proj"), ("layer_norm1", "layer_norm2")])
def test_swapped_weights_are_seen_by_the_parity_test(tiny, tmp_path, swap):
    theirs, ours = tiny
    state = dict(theirs.vision_model.state_dict())
    for name in list(state):
        if swap[0] in name:
            other = name.replace(*swap)
            state[name], state[other] = state[other], state[name]
    save_file(state, tmp_path / "w.safetensors")
    tower = checkpoints.import_image_tower(tmp_path / "w.safetensors", ours.visual.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        swapped = torch.func.functional_call(ours.visual, tower, images)
        worst = (F.normalize(swapped, dim=-1) - ours.encode_image(images, True)).abs().max()
    assert worst > 10 * TOLERANCE


def test_the_real_architecture_agrees_with_transformers(tmp_path):
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    theirs = transformers_clip(config)
    tokens, images = prompts(2, 77, 49408), torch.randn(2, 3, 224, 224)
    tokens[1, 30:] = 49407  # nothing after the end of a text counts
    with torch.no_grad():
        expected = theirs(tokens, images)
    save_file(theirs.vision_model.state_dict(), tmp_path / "w.safetensors")
    projection = theirs.visual_projection.weight.detach().T
    whole = text_tower(theirs.state_dict(), 12)
    del theirs  # two image towers at a time, not three

    with torch.device("meta"):
        ours = open_clip.CLIP(**config).eval()
    reference = ours.visual.state_dict() | {"proj": projection}
    tower = checkpoints.import_image_tower(tmp_path / "w.safetensors", reference)
    assert len(tower) == 152 and sum(t.numel() for t in tower.values()) == 87_849_216
    ours.load_state_dict(whole | {f"visual.{n}": t for n, t in tower.items()}, assign=True)
    ours.attn_mask = torch.full((77, 77), float("-inf")).triu(1)
    assert difference(expected, ours, images, tokens) < TOLERANCE


def test_zero_shot_head_matches_transformers_text_tower():
    texts = [prompt for name in TASK.classnames for prompt in TASK.prompts(name)]
    tokenize = clip.Tokenizer.covering(texts, 10)
    text = TINY["text_cfg"] | {"vocab_size": len(tokenize.vocabulary)}
    theirs = transformers_clip(TINY | {"text_cfg": text})
    ours = open_clip.CLIP(**TINY | {"text_cfg": text}).eval()
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


def written(tensors, folder, suffix):
    """Save tensors as either format and return the file."""
    path = folder / f"w{suffix}"
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(params=[".safetensors", ".pt"])
def suffix(request):
    return request.param


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
        assert same(checkpoints.import_image_tower(path, expected), expected)


def test_projection_comes_from_the_file_where_it_has_one(tiny, tmp_path):
    theirs, ours = tiny
    expected = ours.visual.state_dict()
    reference = expected | {"proj": torch.ones_like(expected["proj"])}
    with_it = written(theirs.state_dict(), tmp_path, ".pt")
    assert same(checkpoints.import_image_tower(with_it, reference), expected)
    without = written(theirs.vision_model.state_dict(), tmp_path, ".safetensors")
    tower = checkpoints.import_image_tower(without, reference)
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
    path = written(whole, tmp_path, suffix)
    tower = checkpoints.import_image_tower(path, expected)
    assert same(tower, expected) and list(tower) == list(expected)
    bare = {f"{prefix}{name}": tensor for name, tensor in expected.items()}
    path = written(bare, tmp_path, suffix)
    assert same(checkpoints.import_image_tower(path, expected), expected)


def test_half_precision_training_checkpoints_and_parameters_are_read(tiny, tmp_path):
    _, ours = tiny
    half = OrderedDict((f"visual.{n}", t.half()) for n, t in ours.visual.state_dict().items())
    torch.save({"epoch": 3, "state_dict": half}, tmp_path / "epoch_3.pt")
    tower = checkpoints.import_image_tower(tmp_path / "epoch_3.pt", ours.visual.state_dict())
    assert all(tensor.dtype == torch.float32 for tensor in tower.values())
    assert torch.equal(tower["proj"], half["visual.proj"].float())
    torch.save(dict(ours.visual.named_parameters()), tmp_path / "parameters.pt")
    tower = checkpoints.import_image_tower(tmp_path / "parameters.pt", ours.visual.state_dict())
    assert not any(tensor.requires_grad for tensor in tower.values())


def test_the_tower_of_a_resnet_is_read(tmp_path):
    config = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    clip = open_clip.CLIP(**TINY | {"vision_cfg": config})
    path = written(clip.state_dict(), tmp_path, ".safetensors")
    expected = clip.visual.state_dict()
    assert same(checkpoints.import_image_tower(path, expected), expected)


def test_tensors_that_do_not_fit_are_refused_by_name(tiny, tmp_path):
    _, ours = tiny
    reference = ours.visual.state_dict()

    def refuses(tensors, match):
        with pytest.raises(ValueError, match=match):
            checkpoints.import_image_tower(written(tensors, tmp_path, ".pt"), reference)

    less = {n: t for n, t in reference.items() if not n.startswith("ln_p")}
    refuses(less, r"w\.pt does not fit the 32 .* 4 missing, first: 'ln_post.bias'; understood")
    refuses(reference | {"b": torch.ones(1), "a": torch.ones(1)}, "2 unexpected, first: 'a'")
    wide = {"proj": torch.ones(64, 7), "ln_pre.bias": torch.ones(3)}
    refuses(reference | wide, r"2 mis-shaped, first: 'ln_pre.bias', \(3,\) where \(64,\)")
    refuses(less | {"a": torch.ones(1)} | {"proj": torch.ones(2)}, "missing.* unexpected.* mis-sh")
    refuses(
        {"weight": torch.ones(2)}, "0 image towers, .* among 1 tensors, first: 'weight'; underst"
    )
    refuses({}, "0 image towers, .* among 0 tensors, first: 'none'")
    refuses(torch.ones(3), "0 image towers, .* among 0 tensors")
    both = {f"{name}.{n}": t for n, t in reference.items() for name in ("student", "teacher")}
    refuses(both, "2 image towers")
    nan = {"proj": reference["proj"] * float("nan"), "ln_pre.bias": torch.full((64,), torch.inf)}
    refuses(reference | nan, "2 tensors with NaN or infinity, first: 'ln_pre.bias'")


def test_incomplete_attention_of_transformers_is_refused(tiny, tmp_path):
    theirs, ours = tiny
    reference = ours.visual.state_dict()
    state = theirs.vision_model.state_dict()
    gone = {n: t for n, t in state.items() if "layers.1.self_attn.v_proj.bias" not in n}
    with pytest.raises(ValueError, match=r"1 missing, first: '.*1.attn.in_proj_bias'; 2 unexp"):
        checkpoints.import_image_tower(written(gone, tmp_path, ".pt"), reference)
    name = "encoder.layers.0.self_attn."
    state[f"{name}q_proj.bias"] = torch.ones(96)  # the three together have the right length
    state[f"{name}v_proj.bias"] = torch.ones(32)
    with pytest.raises(ValueError, match=r"1 missing, first: '.*0.attn.in_proj_bias'; 3 unexp"):
        checkpoints.import_image_tower(written(state, tmp_path, ".pt"), reference)


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
        lambda: checkpoints.import_image_tower(path, {}),
        lambda: checkpoints.pretrained_clip(weights=str(path)),
    ):
        with pytest.raises(ValueError, match=r"evil\.pt is no state dict .* and none was run"):
            read()
    assert not evil.path.exists()


def test_a_pickled_model_is_refused_with_the_remedy(tiny, tmp_path):
    torch.save(tiny[1].visual, tmp_path / "Cars.pt")
    with pytest.raises(
        ValueError,
        match=r"\(open_clip\.transformer\.VisionTransformer\).*torch\.save\(model\.state_dict",
    ):
        checkpoints.import_image_tower(tmp_path / "Cars.pt", {})


@pytest.mark.filterwarnings("ignore")  # making TorchScript is deprecated, and says much
def test_torchscript_is_refused_with_a_remedy_that_works(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, ours = tiny
    torch.jit.trace(ours.visual, torch.zeros(1, 3, 32, 32), check_trace=False).save("ViT-B-32.pt")
    with pytest.raises(ValueError, match="is TorchScript") as refusal:
        checkpoints.import_image_tower("ViT-B-32.pt", {})
    exec("\n".join(line.strip() for line in str(refusal.value).splitlines()[1:]))
    reference = ours.visual.state_dict()
    assert same(checkpoints.import_image_tower("ViT-B-32.safetensors", reference), reference)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02N.", None])
def test_unreadable_files_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        checkpoints.import_image_tower(tmp_path / name, {})


def test_truncated_files_are_refused(tiny, tmp_path, suffix):
    reference = tiny[1].visual.state_dict()
    path = written(reference, tmp_path, suffix)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as .* fetch it again"):
        checkpoints.import_image_tower(path, reference)


# whole CLIPs


def test_a_local_clip_is_built_silently_and_exactly(
    tiny, tiny_in_open_clip, tmp_path, suffix, capfd, caplog
):
    _, ours = tiny
    path = written({f"module.{n}": t for n, t in ours.state_dict().items()}, tmp_path, suffix)
    handlers = list(logging.getLogger().handlers)
    built = checkpoints.pretrained_clip("Tiny-quickgelu", str(path))
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
        built.append(checkpoints.pretrained_clip("Tiny-quickgelu", "random").state_dict())
    assert same(built[0], built[1]) and not same(built[0], built[2])


def test_a_file_that_is_another_clip_is_refused(tiny, tiny_in_open_clip, tmp_path):
    _, ours = tiny
    less = {n: t for n, t in ours.state_dict().items() if n != "logit_scale"}
    path = str(written(less, tmp_path, ".pt"))
    with pytest.raises(ValueError, match="1 missing, first: 'logit_scale'; is it Tiny-quickgelu"):
        checkpoints.pretrained_clip("Tiny-quickgelu", path)
    for other in (ours.visual, tiny[0]):
        path = str(written(other.state_dict(), tmp_path, ".pt"))
        with pytest.raises(ValueError, match="0 image towers, told by 'visual.* give `model.state"):
            checkpoints.pretrained_clip("Tiny-quickgelu", path)


def test_unknown_names_are_refused_with_the_closest():
    with pytest.raises(ValueError, match="architecture 'ViTB32'; closest: ViT-B-32"):
        checkpoints.pretrained_clip("ViTB32")
    with pytest.raises(ValueError, match="'opnai' are no file, and no tag of .*; closest: openai"):
        checkpoints.pretrained_clip(weights="opnai")
    with pytest.raises(ValueError, match="'zzz' are no file.*valid: openai, laion400m_e31"):
        checkpoints.pretrained_clip(weights="zzz")
    for name in ("coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"):
        with pytest.raises(ValueError, match=f"{name}' takes a tower from another library"):
            checkpoints.pretrained_clip(name)


def test_a_mismatched_activation_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="QuickGELU but .* GELU; use 'ViT-B-32-quickgelu'"):
        checkpoints.pretrained_clip("ViT-B-32", "openai")
    monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda *_: {"hf_hub": "a/b/"})
    with pytest.raises(ValueError, match="with GELU but .* QuickGELU; use 'ViT-B-32'"):
        checkpoints.pretrained_clip("ViT-B-32-quickgelu", "tag")


def test_a_tag_is_downloaded(tiny, tiny_in_open_clip, tmp_path, monkeypatch):
    path = written(tiny[1].state_dict(), tmp_path, ".safetensors")
    tag = {"hf_hub": "someone/clip/", "quick_gelu": True}
    monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda *_: tag)
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda **_: str(path))
    built = checkpoints.pretrained_clip("Tiny-quickgelu", "tag")
    assert same(built.state_dict(), tiny[1].state_dict())


def offline(*_, **__):
    raise LocalEntryNotFoundError("no connection\nand a second line")


def test_a_failed_download_of_clip_gives_a_remedy_that_works(
    tiny, tiny_in_open_clip, tmp_path, monkeypatch
):
    tag = {"hf_hub": "someone/clip/", "quick_gelu": True}
    monkeypatch.setattr(pretrained, "get_pretrained_cfg", lambda _, name: name == "tag" and tag)
    monkeypatch.setattr(pretrained, "hf_hub_download", offline)
    with pytest.raises(RuntimeError, match="weights 'tag' of Tiny-q.* no connection") as failure:
        checkpoints.pretrained_clip("Tiny-quickgelu", "tag")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: tiny[1])
    exec("\n".join(line.strip() for line in str(failure.value).splitlines()[1:]))
    built = checkpoints.pretrained_clip("Tiny-quickgelu", "clip.safetensors")
    assert same(built.state_dict(), tiny[1].state_dict())


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
    with pytest.raises(ValueError, match="'CIFAR10' is known; valid: Cars, DTD, EuroSAT, F"):
        checkpoints.hub_checkpoint("CIFAR10")


def test_a_failed_download_of_a_checkpoint_names_the_remedy(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    match = r"patch32_dtd \(LocalEntryNotFoundError: no connection\); .*FINETUNED=FOLDER with DTD"
    with pytest.raises(RuntimeError, match=match):
        checkpoints.hub_checkpoint("DTD")


def test_local_checkpoints_are_found_by_name(tmp_path):
    (tmp_path / "DTD.pt").touch()
    assert checkpoints.local_checkpoint(tmp_path, "DTD") == tmp_path / "DTD.pt"
    (tmp_path / "DTD.safetensors").touch()
    assert checkpoints.local_checkpoint(tmp_path, "DTD") == tmp_path / "DTD.safetensors"
    match = (
        r"neither Cars.safetensors nor Cars.pt but 2 entries: DTD.pt, DTD.s.* for each .* Cars, D"
    )
    with pytest.raises(ValueError, match=match):
        checkpoints.local_checkpoint(tmp_path, "Cars")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 entries: it is empty; expected"):
        checkpoints.local_checkpoint(tmp_path / "empty", "Cars")
    with pytest.raises(ValueError, match="absent is not a folder; it should hold TASK.safe"):
        checkpoints.local_checkpoint(tmp_path / "absent", "Cars")
