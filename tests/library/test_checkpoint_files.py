"""Checkpoints as they lie on disk: read, tied, partly interpolated, written; BatchNorm anew."""

import json
import math
import os
import sys
import types

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from small import network
from torch import nn

import paintlib
from paintlib import PairObjective, TaskLoss, WeightPath, checkpoints


def state(seed, dtype=torch.float32):
    return network(seed, dtype).state_dict()


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same(tensors, expected):
    assert {*tensors} == {*expected}
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def safetensors_file(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def folder_of_one(folder, tensors):
    safetensors_file(folder, tensors)
    (folder / "config.json").write_text("{}")
    torch.save({}, folder / "training_args.bin")
    return folder


def shards(folder, tensors, of="safetensors"):
    places = {name: f"part-{i % 2}.{of}" for i, name in enumerate(tensors)}
    for file in {*places.values()}:
        part = {name: t for name, t in tensors.items() if places[name] == file}
        if of == "safetensors":
            safetensors.torch.save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
    (folder / f"model.{of}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def index_file(folder, tensors):
    return shards(folder, tensors) / "model.safetensors.index.json"


def shards_of_pickles(folder, tensors):
    return shards(folder, tensors, "bin")


def pickle_file(folder, tensors):
    torch.save(tensors, folder / "w.pt")
    return folder / "w.pt"


def old_pickle_file(folder, tensors):
    torch.save(tensors, folder / "w.bin", _use_new_zipfile_serialization=False)
    return folder / "w.bin"


def lightning_file(folder, tensors):
    content = {"state_dict": prefixed("model.", tensors), "epoch": 3, "global_step": 12,
               "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
               "hyper_parameters": {"lr": 0.1}}  # fmt: skip
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def file_with_optimizer(folder, tensors):
    moments = {name: {"exp_avg": torch.zeros_like(t)} for name, t in tensors.items()}
    content = {"model": tensors, "optimizer": {"state": moments}, "loss": torch.tensor(0.5)}
    torch.save(content, folder / "w.pt")
    return folder / "w.pt"


def mapping(folder, tensors):
    return {"state_dict": tensors, "epoch": 1}


def module(folder, tensors):
    model = network(0)
    model.load_state_dict(tensors)
    return model


FORMS = [safetensors_file, folder_of_one, shards, index_file, shards_of_pickles, pickle_file,
         old_pickle_file, lightning_file, file_with_optimizer, mapping, module]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_load_reads_each_form_of_checkpoint(form, tmp_path):
    end = form(tmp_path, state(2))
    if isinstance(end, os.PathLike):
        end = str(end)
    path = WeightPath.load(state(1), end)
    same(path.set_(network(3), 0.0).state_dict(), state(1))
    same(path.set_(network(3), 1.0).state_dict(), state(2))
    assert path.digests == WeightPath(state(1), state(2)).digests
    backwards = WeightPath.load(end, state(1))
    assert backwards.digests == path.digests[::-1]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
def test_load_takes_prefixes_of_wrappers_off_where_all_names_have_them(prefix, tmp_path):
    plain = WeightPath(state(1), state(2))
    one, both = (
        WeightPath.load(start, prefixed(prefix, state(2)))
        for start in (state(1), prefixed(prefix, state(1)))
    )
    wrapped = nn.Module()
    wrapped.model = network(3)
    for path in (one, both):
        assert path.digests == plain.digests
        same(path.set_(network(3), 0.5).state_dict(), plain.set_(network(3), 0.5).state_dict())
        same(path.set_(wrapped, 0.5).model.state_dict(), plain.set_(network(3), 0.5).state_dict())
    both.save(tmp_path / "both.safetensors", 1.0)  # under the names of the input
    same(checkpoints.read(tmp_path / "both.safetensors"), prefixed(prefix, state(2)))


def test_load_never_guesses_where_only_some_names_have_a_prefix():
    some = {f"module.{name}" if "0" in name else name: t for name, t in state(2).items()}
    with pytest.raises(ValueError, match="4 tensors are on one side only, first: '0.bias'"):
        WeightPath.load(state(1), some)
    twice = {**state(2), "module.0.bias": torch.ones(8)}
    with pytest.raises(ValueError, match="1 tensors .* first: 'module.0.bias'"):
        WeightPath.load(state(1), twice)


class Reader(nn.Module):
    """Named as transformers names a model with a head: `model.*` and the head beside it."""

    def __init__(self, seed, head="score", tied=False):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "body": nn.Linear(3, 3)})
        setattr(self, head, nn.Linear(3, 5, bias=False))
        if tied:
            self.lm_head.weight = self.model["embed"].weight
        self.eval()


def test_left_out_head_is_saved_under_its_own_name(tmp_path):
    model = Reader(3)
    path = WeightPath.load(Reader(1).state_dict(), Reader(2).state_dict(), except_="score.*")
    path.save(tmp_path / "p.safetensors", 0.5, model=model)
    saved = safetensors.torch.load_file(tmp_path / "p.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert torch.equal(saved["score.weight"], Reader(3).score.weight)


def test_what_the_checkpoints_lack_is_saved_of_the_model(tmp_path):
    bodies = [{"model.body.weight": torch.full((3, 3), float(i))} for i in range(2)]
    model = Reader(3, "lm_head", tied=True)
    path = WeightPath.load(*bodies, only="model.body.*")
    path.save(tmp_path / "p.safetensors", 0.5, model=model)
    names = safetensors.torch.load_file(tmp_path / "p.safetensors").keys()
    assert len(names) == 3  # of the tied two one
    same(checkpoints.read(tmp_path / "p.safetensors"), model.state_dict())
    assert torch.equal(model.model["body"].weight, torch.full((3, 3), 0.5))
    other = Reader(4, "lm_head", tied=True)
    safetensors.torch.load_model(other, tmp_path / "p.safetensors")
    same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("start", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("model", ["", "module.", "_orig_mod."])
def test_what_the_checkpoints_lack_gets_their_wrappers(start, model, tmp_path):
    """The names of both go through the same wrappers, whatever those of the model are."""
    bodies = [{f"{start}model.body.weight": torch.full((3, 3), float(i))} for i in range(2)]
    reader = Reader(3, "lm_head")
    wrapped = nn.ModuleDict({model[:-1]: reader}) if model else reader
    path = WeightPath.load(*bodies, only="*body.weight")
    path.save(tmp_path / "p.safetensors", 0.5, model=wrapped)
    same(checkpoints.read(tmp_path / "p.safetensors"), prefixed(start, reader.state_dict()))


def test_a_tensor_tied_to_one_of_the_path_is_saved_as_that(tmp_path):
    heads = [{"lm_head.weight": torch.full((5, 3), i, dtype=torch.bfloat16)} for i in (1.0, 3.0)]
    path = WeightPath.load(*heads, only="lm_head.*")
    path.save(tmp_path / "p.safetensors", 0.5, model=Reader(3, "lm_head", tied=True))
    saved = safetensors.torch.load_file(tmp_path / "p.safetensors")
    assert "model.embed.weight" not in saved
    assert torch.equal(saved["lm_head.weight"], torch.full((5, 3), 2.0, dtype=torch.bfloat16))
    assert "model.embed.weight" in checkpoints.read(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    "kinds",
    [("safetensors", "safetensors"), ("safetensors", "pt"), ("pt", "safetensors"), ("pt",) * 2],
)
def test_head_that_is_tied_may_stand_in_a_file_or_not(kinds, tmp_path):
    files = []
    for seed, kind in enumerate(kinds):
        state = Reader(seed, "lm_head", tied=True).state_dict()
        files.append(tmp_path / f"{seed}.{kind}")
        if kind == "pt":
            torch.save(state, files[-1])
        else:
            state.pop("lm_head.weight")
            safetensors.torch.save_file(state, files[-1])
    model = Reader(3, "lm_head", tied=True)
    path = WeightPath.load(*files)
    path.set_(model, 0.5)
    middle = torch.lerp(*(Reader(s, "lm_head", tied=True).lm_head.weight for s in (0, 1)), 0.5)
    torch.testing.assert_close(model.lm_head.weight, middle)
    path.save(tmp_path / "p.safetensors", 1.0)
    safetensors.torch.load_model(model, tmp_path / "p.safetensors", strict="pt" in kinds)
    known = checkpoints.read(tmp_path / "p.safetensors").keys()
    assert ("lm_head.weight" in known) == ("pt" in kinds)  # a tie that one file tells
    assert torch.equal(model.lm_head.weight, Reader(1, "lm_head", tied=True).lm_head.weight)


def test_prefix_stays_where_two_names_would_be_one():
    state = {"model.a": torch.ones(2), "a": torch.zeros(2), "model.b": torch.ones(2)}
    assert checkpoints.strip(state, ["model.a", "model.b"]) == ("", state)


def test_tensors_beside_a_dict_of_tensors_are_not_lost_in_silence():
    both = {"w": torch.ones(2), "stats": {"mean": torch.zeros(2)}, "loss": torch.tensor(0.1)}
    with pytest.raises(ValueError, match=r"2 state dicts: stats, '' \(its top\); choose by entry="):
        checkpoints.read(both)
    assert {*checkpoints.read(both, "")} == {"w", "loss"}
    del both["w"]  # a number alone is no weight
    assert {*checkpoints.read(both)} == {"mean"}


def test_complex_buffers_stay_as_they_are(tmp_path):
    turns = torch.polar(torch.ones(3), torch.arange(3.0))  # as rotary embeddings keep them
    ends = ({"w": torch.full((2,), float(i)), "turns": turns} for i in (1, 2))
    path = WeightPath(*ends)
    path.save(tmp_path / "c.safetensors", 0.75)
    saved = safetensors.torch.load_file(tmp_path / "c.safetensors")
    assert torch.equal(saved["turns"], turns) and saved["w"].tolist() == [1.75] * 2


def test_averaged_weights_are_chosen_by_name_and_never_silently():
    for ema in ("ema", "model_ema", "state_dict_ema"):
        content = {"model": state(2), ema: state(4), "optimizer": {"lr": torch.ones(1)}}
        both = rf"2 state dicts: model, {ema}; choose by entry='model'"
        with pytest.raises(ValueError, match=both):
            WeightPath.load(state(1), content)
        for entry, seed in (("model", 2), (ema, 4)):
            path = WeightPath.load(state(1), content, entry=entry)
            same(path.set_(network(3), 1.0).state_dict(), state(seed))
        path = WeightPath.load(content, content, entry=("model", ema))
        same(path.set_(network(3), 0.0).state_dict(), state(2))
        same(path.set_(network(3), 1.0).state_dict(), state(4))
        with pytest.raises(ValueError, match=f"averaged weights alone: {ema}; choose by entry"):
            WeightPath.load(state(1), {ema: state(4), "epoch": 2})
    nested = {"model": state(2), "ema": {"module": state(4), "decay": 0.999}}
    path = WeightPath.load(state(1), nested, entry="ema.module")
    same(path.set_(network(3), 1.0).state_dict(), state(4))
    with pytest.raises(ValueError, match=r"no state dict 'mean'; it has model, ema\.module"):
        WeightPath.load(state(1), nested, entry="mean")


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({"w": torch.ones(2), "code": types.SimpleNamespace()}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code.pt holds more than tensors.* if you trust it"):
        checkpoints.read(tmp_path / "code.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut.safetensors cannot be read as safe.*; fetch"):
        checkpoints.read(tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="the dict holds no state dict"):
        checkpoints.read({"epoch": 3})
    with pytest.raises(FileNotFoundError, match=r"there/no.pt is not there"):
        checkpoints.read("there/no.pt")
    (tmp_path / "two").mkdir()
    with pytest.raises(FileNotFoundError, match=r"two holds no weights; looked for \*\.safetens"):
        checkpoints.read(tmp_path / "two")
    for name in ("a", "b"):
        safetensors.torch.save_file(state(1), tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"2 files of weights: a.safetensors, b.safetensors; name"):
        checkpoints.read(tmp_path / "two")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore::DeprecationWarning")
def test_torchscript_is_refused_and_the_remedy_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(network(1), torch.ones(2, 6)).save("program.pt")
    with pytest.raises(ValueError, match=r"^program\.pt is TorchScript, a program; ") as caught:
        checkpoints.read("program.pt")
    exec(str(caught.value).rpartition("alone: ")[2], {"torch": torch})
    same(checkpoints.read("weights.pt"), state(1))


def test_shards_that_are_missing_or_lack_a_tensor_are_named(tmp_path):
    shards(tmp_path, state(1))
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "0.gain": "part-1.safetensors"}}))
    with pytest.raises(ValueError, match="1 tensors of .* '0.gain' in part-1.safetensors; fetch"):
        checkpoints.read(index)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-1.safetensors is missing; fetch"):
        checkpoints.read(tmp_path)


def test_ids_of_the_hub_are_fetched_where_its_client_is_installed(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repository, *, revision, allow_patterns):
        calls.append((repository, revision, allow_patterns[0]))
        if allow_patterns[0] == "*.bin":
            torch.save(state(2), tmp_path / "pytorch_model.bin")
            torch.save({}, tmp_path / "training_args.bin")
        return str(tmp_path)

    client = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    same(checkpoints.read("some-one/a.model-2@v1"), state(2))
    assert calls == [("some-one/a.model-2", "v1", "*.safetensors"),
                     ("some-one/a.model-2", "v1", "*.bin")]  # fmt: skip
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="'some-one/model' is no file .*pip install huggingface"):
        checkpoints.read("some-one/model")


class Tied(nn.Module):
    """A language model's shape: the head is the embedding."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 5)
        self.body = nn.Linear(5, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.eval()

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


def untied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_ties_count_once_and_stay(tmp_path):
    start, end = Tied(1), Tied(2)
    pairs = zip(start.parameters(), end.parameters(), strict=True)
    once = [(a.detach().double() - b.double()).square().sum().item() for a, b in pairs]
    for seed in (1, 2):
        safetensors.torch.save_model(Tied(seed), tmp_path / f"{seed}.safetensors")
        torch.save(Tied(seed).state_dict(), tmp_path / f"{seed}.pt")
    with safe_open(tmp_path / "1.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3  # of four names
    dropped = untied(start.state_dict())
    del dropped["head.weight"]  # a file that says nothing of what it dropped
    expected = torch.lerp(start.embed.weight, end.embed.weight, 0.3)
    sides = [(start, end), (start, tmp_path / "2.pt"), (dropped, end), (end, dropped),
             (tmp_path / "1.pt", tmp_path / "2.safetensors"), (untied(start.state_dict()), end),
             (tmp_path / "1.safetensors", tmp_path / "2.safetensors")]  # fmt: skip
    for a, b in sides:
        path = WeightPath.load(a, b)
        assert path.start.numel() == sum(p.numel() for p in start.parameters())
        assert path.length == pytest.approx(math.sqrt(sum(once)), rel=1e-12)
        model = path.set_(Tied(3), 0.3 if a is not end else 0.7)
        path.set_(model, 0.3 if a is not end else 0.7)
        assert model.head.weight is model.embed.weight
        torch.testing.assert_close(model.embed.weight, expected, rtol=1e-6, atol=1e-6)
        Tied(0).load_state_dict(path.unflatten(path.start))  # all names are there
    gradient = path.flatten({"embed.weight": torch.ones(7, 5)})
    assert gradient.sum() == 35 and torch.equal(
        path.flatten({"head.weight": torch.ones(7, 5)}), gradient
    )


def test_ties_that_one_side_broke_are_two_tensors():
    broken = untied(Tied(2).state_dict())
    broken["head.weight"] += 1
    path = WeightPath(Tied(1), broken)
    assert path.start.numel() == 2 * 35 + 30
    with pytest.raises(ValueError, match="'embed.weight' and 'head.weight' are one .*; untie them"):
        path.set_(Tied(3), 0.5)
    loose = Tied(3)
    loose.head.weight = nn.Parameter(torch.zeros(7, 5))
    assert torch.equal(path.set_(loose, 1.0).head.weight, broken["head.weight"])
    assert torch.equal(loose.embed.weight, broken["embed.weight"])
    lacking = untied(Tied(2).state_dict())
    del lacking["head.weight"]
    with pytest.raises(ValueError, match="1 tensors are on one side only, first: 'head.weight'"):
        WeightPath(untied(Tied(1).state_dict()), lacking)  # equal by chance is no tie


def test_models_that_untied_what_the_path_ties_get_both():
    loose = Tied(3)
    loose.head.weight = nn.Parameter(torch.zeros(7, 5))
    path = WeightPath(Tied(1), Tied(2))
    for alpha in (0.0, 0.4):
        path.set_(loose, alpha)
        assert torch.equal(loose.head.weight, loose.embed.weight)
        assert loose.head.weight is not loose.embed.weight
    assert torch.equal(path.set_(loose, 1.0).head.weight, Tied(2).embed.weight)


def test_ties_are_saved_as_safetensors_does(tmp_path):
    path = WeightPath(Tied(1), Tied(2))
    path.save(tmp_path / "mean.safetensors", 0.5, metadata={"alpha": "0.5"})
    with safe_open(tmp_path / "mean.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["body.bias", "body.weight", "embed.weight"]
        assert file.metadata() == {"alpha": "0.5", "head.weight": "embed.weight"}
    model = Tied(3)
    safetensors.torch.load_model(model, tmp_path / "mean.safetensors")
    same(model.state_dict(), path.set_(Tied(4), 0.5).state_dict())
    again = WeightPath.load(tmp_path / "mean.safetensors", Tied(2))
    assert again.start.numel() == 65


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name(dtype):
    def quantised(seed):
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randint(1, 9, (4, 3), generator=generator)
        return {"scale": torch.rand(4, generator=generator), "weight": numbers.to(dtype)}

    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        ValueError, match=f"1 tensors are quantised .* 'weight', torch.{name}; inter"
    ):
        WeightPath(quantised(1), quantised(2))


def test_buffers_that_count_or_index_come_from_the_nearer_end(tmp_path):
    def counted(n):
        ids = torch.arange(n, n + 4)[None]
        return {"w": torch.full((2,), float(n)), "num_batches_tracked": torch.tensor(n),
                "position_ids": ids, "mask": ids > n + 1,
                "tril": torch.ones(2, 2).byte()}  # fmt: skip

    path = WeightPath(counted(1), counted(5))
    for alpha, n in ((0.4, 1), (0.5, 5)):
        path.save(tmp_path / "w.safetensors", alpha)
        expected = {**counted(n), "w": torch.full((2,), 1 + 4 * alpha)}
        same(checkpoints.read(tmp_path / "w.safetensors"), expected)


class Headed(nn.Module):
    def __init__(self, seed, classes):
        super().__init__()
        self.body, self.head = network(seed), nn.Linear(4, classes)


@pytest.mark.parametrize("globs", [{"except_": "head.*"}, {"only": ["body.*"]},
                                   {"only": "*", "except_": ["*head*"]}])  # fmt: skip
def test_heads_that_differ_stay_as_the_model_has_them(globs, tmp_path):
    torch.save({"state_dict": prefixed("module.", Headed(2, 9).state_dict())}, tmp_path / "end.pt")
    start, model = Headed(1, 5).state_dict(), Headed(3, 7)
    before = model.head.weight.clone()
    for path in (WeightPath(start, Headed(2, 9), **globs),
                 WeightPath.load(start, tmp_path / "end.pt", **globs),
                 WeightPath(start, prefixed("body.", state(2)), **globs)):  # fmt: skip
        path.set_(model, 0.3)
        assert torch.equal(model.head.weight, before)
        same(
            model.body.state_dict(),
            WeightPath(state(1), state(2)).set_(network(0), 0.3).state_dict(),
        )
        assert path.length == pytest.approx(WeightPath(state(1), state(2)).length, rel=1e-12)
    path.save(tmp_path / "path.safetensors", 1.0)
    same(checkpoints.read(tmp_path / "path.safetensors"), prefixed("body.", state(2)))
    path.save(tmp_path / "model.safetensors", 1.0, model=model)
    same(checkpoints.read(tmp_path / "model.safetensors"), model.state_dict())


def test_globs_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"no name fits 'heads\.\*'; one is '0.bias'"):
        WeightPath(state(1), state(2), except_="heads.*")
    with pytest.raises(ValueError, match=r"no name fits 'heads'"):
        WeightPath.load(state(1), state(2), only=["0.*", "heads"])
    with pytest.raises(ValueError, match="2 tensors are on one side only, first: 'head.bias'"):
        path = WeightPath(prefixed("body.", state(1)), prefixed("body.", state(2)))
        path.set_(Headed(3, 7), 0.5)  # a model may have more only where a glob leaves it out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_save_writes_the_types_of_the_input(dtype, tmp_path):
    path = WeightPath(state(1, dtype), state(2, dtype))
    file = tmp_path / "new" / "w.safetensors"
    wide = torch.promote_types(dtype, torch.float32)
    for alpha in (0.0, 1.0, 0.3, -0.2):
        path.save(file, alpha, metadata={"alpha": repr(alpha)})
        pairs = zip(state(1, dtype).items(), state(2, dtype).values(), strict=True)
        expected = {
            name: torch.lerp(a.to(wide), b.to(wide), alpha).to(dtype) for (name, a), b in pairs
        }
        same(safetensors.torch.load_file(file), expected)
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"alpha": repr(alpha)}
    assert [child.name for child in file.parent.iterdir()] == [file.name]


def test_save_keeps_each_tensors_own_type(tmp_path):
    def mixed(seed):
        tensors = state(seed, torch.bfloat16)
        return {**tensors, "2.weight": tensors["2.weight"].float() + 2**-20,
                "half": torch.ones(3).half(), "empty": torch.ones(0, 3),
                "scalar": torch.tensor(float(seed))}  # fmt: skip

    path = WeightPath(mixed(1), mixed(2))
    path.save(tmp_path / "w.safetensors", 1.0)
    same(safetensors.torch.load_file(tmp_path / "w.safetensors"), mixed(2))
    assert path.start.dtype == torch.float32
    same(path.unflatten(path.start), {name: t.float() for name, t in mixed(1).items()} | {})
    assert torch.equal(path.at(0.3), torch.lerp(path.start, path.end, 0.3))
    assert path.length == pytest.approx(float(torch.dist(path.start, path.end)), rel=1e-6)
    whole = [{name: t.float() for name, t in mixed(seed).items()} for seed in (1, 2)]
    assert path.digests == WeightPath(*whole).digests  # that of the numbers


@pytest.mark.parametrize("kind", (torch.uint8, torch.uint16, torch.uint32, torch.uint64))
def test_save_keeps_what_counts_without_a_sign(kind, tmp_path):
    counts = {"counts": torch.tensor([1, 200]).to(kind)}
    path = WeightPath({**state(1), **counts}, {**state(2), **counts})
    path.save(tmp_path / "w.safetensors", 0.5)
    saved = safetensors.torch.load_file(tmp_path / "w.safetensors")["counts"]
    assert saved.dtype == kind and saved.tolist() == [1, 200]


def test_model_whose_state_dict_is_a_copy_is_refused():
    model, path = network(3), WeightPath(network(1), network(2))
    model.register_buffer("graph", torch.eye(2).to_sparse(), persistent=False)  # has no storage
    path.set_(model, 0.5)
    model[0]._register_state_dict_hook(
        lambda module, state, prefix, _: state.update({n: t.clone() for n, t in state.items()})
    )
    with pytest.raises(ValueError, match=r"'0.weight' in the state_dict\(\) .* is a copy"):
        path.set_(model, 0.5)


def test_save_leaves_the_old_file_where_it_fails(tmp_path, monkeypatch):
    path, file = WeightPath(state(1), state(2)), tmp_path / "w.safetensors"
    path.save(file, 0.0)
    with pytest.raises(ValueError, match=r"metadata\['alpha'\] is no string; give str"):
        path.save(file, 1.0, metadata={"alpha": 1.0})
    with pytest.raises(ValueError, match="alpha = nan is not a finite number"):
        path.save(file, float("nan"))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(path, "_write", full)
    with pytest.raises(OSError, match="no space"):
        path.save(file, 1.0)
    same(checkpoints.read(file), state(1))
    assert [child.name for child in tmp_path.iterdir()] == [file.name]


def test_save_is_of_the_same_bytes_each_time(tmp_path):
    path = WeightPath(state(1), state(2))
    for name in ("a", "b"):
        path.save(tmp_path / name, 0.4, metadata={"b": "1", "a": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def convolutional(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))  # fmt: skip


def pictures(seed, slope):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (96,), generator=generator)
    ramp = torch.linspace(-1, 1, 10)
    bars = torch.stack([torch.cos(ramp * (1 + 2 * int(k)) * slope) for k in labels])
    noise = torch.randn(96, 1, 10, 10, generator=generator)
    return list(zip((bars[:, None, None] + 0.3 * noise).split(32), labels.split(32), strict=True))


def trained(seed, slope):
    model = convolutional(seed).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(8):
        for images, labels in pictures(seed, slope):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
    return model.eval()


def test_batchnorm_is_estimated_anew_at_each_alpha():
    start, end, data = trained(1, 1.0), trained(2, -3.0), pictures(3, 1.0)
    models = [convolutional(5).eval() for _ in range(2)]

    def again(model):
        paintlib.reestimate_batchnorm(model, data)

    paths = [WeightPath(start, end, after=hook) for hook in (None, again)]
    plain, anew = (
        PairObjective(path, [TaskLoss(model, data), TaskLoss(model, pictures(4, -3.0))], [4, 4])
        for path, model in zip(paths, models, strict=True)
    )
    assert anew.score(0.5) != plain.score(0.5)
    paths[1].set_(models[1], 0.5)
    norm, first = models[1][1], models[1][0]
    means = torch.stack([first(images).mean((0, 2, 3)) for images, _ in data]).mean(0)
    variances = torch.stack([first(images).var((0, 2, 3)) for images, _ in data]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
    expected = TaskLoss(models[1], data).score()
    assert anew.score(0.5)[0].loss == pytest.approx(expected.loss, rel=1e-6)
    assert anew.score(0.5)[0].loss < plain.score(0.5)[0].loss  # of the interpolated statistics


def test_batchnorm_estimation_changes_statistics_alone():
    model = convolutional(1).train()
    model[1].momentum, model[3].training = 0.3, True
    before = untied(dict(model.named_parameters()))
    model.eval()
    model[1].training = True
    with torch.inference_mode():
        model(pictures(1, 1.0)[0][0])
    paintlib.reestimate_batchnorm(model, [images for images, _ in pictures(1, 1.0)])
    kept = untied(model.state_dict())
    named = [{"input": images} for images, _ in pictures(1, 1.0)]  # of Sequential.forward
    for batches in (pictures(1, 1.0), named):  # dropout is off: the same once more
        paintlib.reestimate_batchnorm(model, batches)
        same(model.state_dict(), kept)
    assert (model[1].momentum, model[1].training, model[3].training) == (0.3, True, False)
    assert model[1].num_batches_tracked == 3 and not model[0].weight.grad
    same(dict(model.named_parameters()), before)
    with pytest.raises(ValueError, match="no batch to estimate BatchNorm from"):
        paintlib.reestimate_batchnorm(model, [])
    same(model.state_dict(), kept)
    with pytest.raises(RuntimeError):
        paintlib.reestimate_batchnorm(model, [torch.ones(2, 3, 8, 8)])
    assert (model[1].momentum, model[1].training) == (0.3, True)
    for other in (network(1), nn.BatchNorm2d(3, track_running_stats=False)):
        with pytest.raises(ValueError, match="has no BatchNorm with running statistics"):
            paintlib.reestimate_batchnorm(other, pictures(1, 1.0))


def test_save_with_a_step_after_each_write_takes_the_model(tmp_path):
    start, end = convolutional(1).eval(), convolutional(2).eval()
    path = WeightPath(
        start, end, after=lambda m: paintlib.reestimate_batchnorm(m, pictures(1, 1.0))
    )
    with pytest.raises(ValueError, match=r"a step after each write; give save its model="):
        path.save(tmp_path / "w.safetensors", 0.5)
    model = convolutional(3).eval()
    path.save(tmp_path / "w.safetensors", 0.5, model=model)
    same(checkpoints.read(tmp_path / "w.safetensors"), model.state_dict())
    assert checkpoints.read(tmp_path / "w.safetensors")["1.num_batches_tracked"] == 3


def test_numbers_of_callbacks_beside_the_weights_are_none(tmp_path):
    """A file of Lightning keeps the scores of ModelCheckpoint and EarlyStopping as tensors."""
    callbacks = {
        "ModelCheckpoint{'monitor': 'loss'}": {
            "best_model_score": torch.tensor(0.1), "best_k_models": {"a.ckpt": torch.tensor(0.1)},
        },
        "EarlyStopping": {"best_score": torch.tensor(0.1), "wait_count": 0},
    }  # fmt: skip
    file = {"state_dict": state(1), "callbacks": callbacks, "best_acc1": torch.rand(1)}
    torch.save(file, tmp_path / "last.ckpt")
    same(checkpoints.read(tmp_path / "last.ckpt"), state(1))
    path = WeightPath.load(tmp_path / "last.ckpt", network(2))
    assert path.length == WeightPath(network(1), network(2)).length


def test_averaged_model_of_torch_loads_without_its_count(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network(1))
    torch.save(averaged.state_dict(), tmp_path / "averaged.pt")
    path = WeightPath.load(tmp_path / "averaged.pt", network(2))
    same(path.set_(network(3), 0.0).state_dict(), state(1))


class Beside(nn.Linear):
    """A layer that keeps more than tensors."""

    def get_extra_state(self):
        return {"amax": torch.rand(3)}

    def set_extra_state(self, state):
        pass


def test_extra_states_are_no_weights(tmp_path):
    ends = [nn.Sequential(Beside(6, 4), nn.Linear(4, 2)).eval() for _ in range(2)]
    for name, end in zip("ab", ends, strict=True):
        torch.save(end.state_dict(), tmp_path / f"{name}.pt")
    path = WeightPath.load(tmp_path / "a.pt", tmp_path / "b.pt")
    model = nn.Sequential(Beside(6, 4), nn.Linear(4, 2)).eval()
    assert torch.equal(path.set_(model, 1.0)[0].weight, ends[1][0].weight)
    path.save(tmp_path / "p.safetensors", 1.0, model=model)
    same(safetensors.torch.load_file(tmp_path / "p.safetensors"), checkpoints.read(ends[1]))


@pytest.mark.filterwarnings("ignore")  # of torch.ao, which goes elsewhere
def test_layers_that_are_quantised_as_a_whole_are_refused():
    packed = {"0.scale": torch.tensor(1.0), "0._packed_params._packed_params": (1, 2)}
    for call in (lambda: checkpoints.read(packed), lambda: WeightPath(packed, packed)):
        with pytest.raises(ValueError, match=r"_packed_params' is a quantised layer; interpolate"):
            call()


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json is no index of shards; fetch it again"):
        checkpoints.read(tmp_path)


def test_what_differs_is_refused_with_the_ways_to_leave_it_out():
    with pytest.raises(ValueError, match="leave out what others lack by except_, or name what"):
        WeightPath(network(1), nn.Linear(6, 4))
    masked = [state(seed) | {"mask": torch.tensor([0.0, -torch.inf])} for seed in (1, 2)]
    with pytest.raises(ValueError, match=r"first in 'mask'; .* leave out what is no weight by exc"):
        WeightPath(*masked)
    WeightPath(*masked, except_="mask")
