"""The how-tos of the book: each function runs on a small model, the command takes each line."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from paintlib import WeightPath
from paintlib.__main__ import parser
from paintlib.patch import Setup, check, choose
from paintlib.store import Store

ROOT = Path(__file__).resolve().parents[2]
HOWTO = (ROOT / "book/howto.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", HOWTO, flags=re.M | re.S)
FUNCTIONS = {title: code for title, text in SECTIONS
             for code in re.findall(r"```python\n(.*?)```", text, flags=re.S)}  # fmt: skip
SMALL = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "num_labels": 3}  # fmt: skip


def images(shape, classes):
    return [(torch.randn(12, *shape), torch.randint(classes, (12,)))] * 2


def tokens(labels):
    ids = torch.randint(30, (6, 5))
    labels = torch.where(torch.rand(6, 5) < 0.2, -100, ids) if labels else torch.randint(3, (6,))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}] * 2


@pytest.fixture
def small(monkeypatch):
    """Models of a few numbers in place of those to be fetched."""
    transformers, timm = pytest.importorskip("transformers"), pytest.importorskip("timm")

    def pretrained(kind, config):
        auto = getattr(transformers, kind)
        monkeypatch.setattr(auto, "from_pretrained", lambda name: auto.from_config(config))

    pretrained("AutoModelForSequenceClassification", transformers.BertConfig(**SMALL))
    pretrained("AutoModelForCausalLM", transformers.LlamaConfig(**SMALL))
    monkeypatch.setattr(timm, "create_model", lambda name, num_classes: torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, num_classes)))  # fmt: skip


@pytest.mark.parametrize("title", FUNCTIONS)
def test_function_gives_tasks_that_can_be_patched(small, tmp_path, title):
    heads = {"keep": 10, "repair": 43} if "Heads" in title else {}
    shape = (64,) if heads else (1, 8, 8)
    text = "Hugging Face" in title or "Language" in title

    def load(name):
        return tokens("Language" in title) if text else images(shape, heads.get(name, 10))

    given = {"load": load, "body": lambda: torch.nn.Linear(64, 64)}
    exec(FUNCTIONS[title], given)
    setup = given["tasks"]()
    assert isinstance(setup, Setup) and list(setup.tasks) == ["keep", "repair"]
    start = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    end = {name: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t
           for name, t in start.items()}  # fmt: skip
    except_ = ("old.*", "new.*") if heads else ()
    path = WeightPath(start, end, except_=except_, after=setup.after)
    store = Store(tmp_path / "s.npz")
    options = parser().parse_args(["patch", "a", "b", "--tasks", "c:d", "--max-evals", "30"])
    told = choose(setup, path, check(setup, path, store, labels=not text), store, options)
    assert 0 <= told["alpha"] <= 1 and told["tasks"]["keep"]["patched"]["loss"] > 0
    assert ("averages of BatchNorm" in str(told["warnings"])) == ("timm" in title)


def test_lines_are_those_the_command_takes():
    whole = HOWTO.replace("\\\n", "")  # lines that go on in the next one
    lines = [line for block in re.findall(r"```bash\n(.*?)```", whole, flags=re.S)
             for line in block.splitlines() if line.startswith("paintlib ")]  # fmt: skip
    assert len(lines) == 9
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True)[1:])
