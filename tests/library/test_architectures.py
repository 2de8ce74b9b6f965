"""Models of other libraries, small and at random: their batches and outputs, as they are."""

import math

import pytest
import torch
import torch.nn.functional as F

from paintlib import PairObjective, TaskLoss, WeightPath, sampling, solver

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "vocab_size": 50}  # fmt: skip


def encoder(kind, seed):
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES, num_labels=3, initializer_range=0.3)
    return getattr(transformers, kind)(config).eval()


def texts(seed, labels_of, count=24):
    """Draw batches as a collator makes them: padded tokens, a mask, and labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (count, 6), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::3, 4:] = 0
    batch = transformers.BatchEncoding(
        {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels_of(tokens, mask)}
    )
    return [transformers.BatchEncoding({k: v[i : i + 8] for k, v in batch.items()})
            for i in range(0, count, 8)]  # fmt: skip


def of_texts(tokens, mask):
    return tokens[:, 0] % 3


def of_tokens(tokens, mask):
    return torch.where(mask == 1, tokens % 3, -100)


def inputs(batch):
    return {name: part for name, part in batch.items() if name != "labels"}


def classification(model, batch):
    return F.cross_entropy(model(**inputs(batch)).logits, batch["labels"], reduction="none")


def hits(model, batch):
    return model(**inputs(batch)).logits.argmax(-1) == batch["labels"]


def tagging(model, batch):
    logits = model(**inputs(batch)).logits.transpose(1, 2)
    each = F.cross_entropy(logits, batch["labels"], reduction="none")
    return each.sum(1) / (batch["labels"] != -100).sum(1)


@pytest.mark.parametrize(
    ("kind", "labels_of", "loss", "correct"),
    [
        ("BertForSequenceClassification", of_texts, classification, hits),
        ("BertForTokenClassification", of_tokens, tagging, None),
    ],
)
def test_an_encoder_of_texts_is_searched_with_its_own_batches(kind, labels_of, loss, correct):
    path, model = WeightPath(encoder(kind, 1), encoder(kind, 2)), encoder(kind, 3)
    tasks = [TaskLoss(model, texts(seed, labels_of), loss=loss, correct=correct) for seed in (4, 5)]
    objective = PairObjective(path, tasks, [3, 3])
    found = solver.log_quintic(objective, xtol=sampling.tolerance(objective), max_evals=20)
    assert found.value <= min(sum(objective(alpha)) for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)) + 0.02
    assert sampling.standard_error(objective, found).value > 0
    assert objective.score(found.alpha)[0].images == 24
    assert math.isnan(objective.score(found.alpha)[0].accuracy) == (correct is None)


def test_the_mean_an_encoder_returns_by_itself_is_refused():
    model = encoder("BertForSequenceClassification", 1)
    task = TaskLoss(model, texts(4, of_texts), loss=lambda model, batch: model(**batch).loss)
    with pytest.raises(ValueError, match=r"loss gives .* of shape \(\) for batch 0 of 8 examples"):
        task.score()


def test_pairs_of_tokens_and_labels_need_only_the_logits_of_the_output():
    model = encoder("BertForTokenClassification", 1)
    data = [(batch["input_ids"], batch["labels"]) for batch in texts(4, of_tokens)]
    with pytest.raises(ValueError, match=r"returns a TokenClassifierOutput; give logits="):
        TaskLoss(model, data).score()
    task = TaskLoss(model, data, logits=lambda x: model(x).logits.transpose(1, 2))
    assert task.score().images == 24 and 0 < task.score().accuracy < 1
