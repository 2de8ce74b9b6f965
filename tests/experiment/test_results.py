import copy
import json
import math
from pathlib import Path

import pytest
import torch

from experiment import results, weights
from experiment.run import VARIANTS, Run

SOLUTION = {
    "alpha": 0.5, "value": 1.0, "bracket": [0.0, 1.0], "status": "CONVERGED", "evaluations": 4,
    "trace": [[0.5, 1.0, [0.6, 0.4]]],
}  # fmt: skip
SOLVERS = ("grid", "quintic", "log_quintic")
POINT = {
    "alpha": 0.0,
    "supported": {"loss": 1.0, "accuracy": 0.5},
    "patching": {"loss": 1.0, "accuracy": 0.5},
}
CURVE = {"classes": 10, "images": 5, "loss": [1.0, 2.0] + 19 * [3.0], "accuracy": 21 * [0.4]}
RECORD = {
    "schema": 2, "supported": "CIFAR10", "patching": "GTSRB",
    "labels": {"supported": "µCIFAR10", "patching": "µGTSRB"}, "normalisation": "zero_shot",
    "curves": {"alphas": 21 * [0.5], "supported": CURVE, "patching": CURVE},
    "run": {"profile": "micro", "seed": 0, "limit": 0, "weights": "random", "finetuned": "own"},
    "solutions": dict.fromkeys(SOLVERS, SOLUTION),
    "sampling": {
        "quintic": {"difference": -0.01, "stderr": 0.02},
        "log_quintic": {"difference": -0.01, "stderr": 0.02},
        "stderr": {key: [None, 0.01] for key in SOLVERS},
        "bootstrap": {"alpha": 0.0, "value": 0.01, "draws": 500},
    },
    "test": dict.fromkeys(("zero_shot", *SOLVERS, "fine_tuned"), POINT),
    "metrics": {
        "length": 1.0, "gradient_norm": 1.0, "gradient_similarity": 0.1,
        "backward_transfer": {"value": 0.1, "alpha": 0.0},
        "forgetting": {"loss": 0.1, "accuracy": 0.0},
        "quasiconvexity_violation": {"sum": 0.0, "supported": 0.0, "patching": 0.0},
    },
}  # fmt: skip


def test_record_survives_the_disk(tmp_path):
    path = tmp_path / "pairs" / "CIFAR10-GTSRB.json"
    results.write_pair(path, RECORD)
    assert results.read_pair(path) == RECORD
    assert [p.name for p in path.parent.iterdir()] == ["CIFAR10-GTSRB.json"]


def test_every_choice_of_a_run_has_a_place_in_the_record(tmp_path):
    run = Run.of("paper", sample=9, variants=",".join(VARIANTS), choose_on="test", root=tmp_path)
    weights.save(run.zero_shot, {"w": torch.zeros(1)}, weights="openai")
    results.write_pair(tmp_path / "pair.json", RECORD | {"run": run.choices})


def test_flat_json_holds_the_same_with_a_list_of_numbers_on_a_line(tmp_path):
    content = {"rows": [[0.5, -1e-05], [3, 4]], "words": ["[1, 2]", "a"], "empty": []}
    results.write_json(tmp_path / "flat.json", content, flat=True)
    assert results.read_json(tmp_path / "flat.json") == content
    lines = (tmp_path / "flat.json").read_text(encoding="utf-8").splitlines()
    assert "  [0.5,-1e-05]," in lines and '  "[1, 2]",' in lines


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "p.json"
    results.write_pair(path, RECORD)
    text = path.read_text(encoding="utf-8").rstrip()
    for length in range(0, len(text), 97):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(ValueError, match=r"p\.json cannot be read as JSON .* `make book`"):
            results.read_pair(path)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("normalisation",), "zeroshot", "normalisation.*zeroshot"),
        (
            ("curves", "supported", "loss"),
            [1.0, 2.0, 3.0],
            "curves/supported/loss: .* is too short",
        ),
        (("test", "quintic", "supported", "accuracy"), 98.0, "98.0 is greater than the maximum"),
        (("solutions", "quintic", "alpha"), 1.5, "1.5 is greater than the maximum"),
        (("metrics", "length"), "1", "'1' is not of type 'number'"),
    ],
)
def test_wrong_record_is_neither_written_nor_read(tmp_path, where, value, message):
    record = copy.deepcopy(RECORD)
    target = record
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    path = tmp_path / "p.json"
    with pytest.raises(ValueError, match=message):
        results.write_pair(path, record)
    assert not path.exists()
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        results.read_pair(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    record = copy.deepcopy(RECORD)
    record["metrics"]["length"] = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_pair(tmp_path / "p.json", record)
    assert list(tmp_path.iterdir()) == []


def test_pairs_come_in_the_order_of_the_run_and_none_may_lack(tmp_path):
    run = {"supported": ["STL10", "CIFAR10"], "patching": ["GTSRB"]}
    results.write_json(tmp_path / "run.json", run)
    for supported in ("CIFAR10", "STL10"):
        results.write_pair(
            tmp_path / "pairs" / f"{supported}-GTSRB.json", {**RECORD, "supported": supported}
        )
    assert [p["supported"] for p in results.read_pairs(tmp_path)] == ["STL10", "CIFAR10"]
    (tmp_path / "pairs" / "STL10-GTSRB.json").rename(tmp_path / "pairs" / "CIFAR10-GTSRB.json")
    with pytest.raises(ValueError, match=r"STL10-GTSRB\.json cannot be read"):
        results.read_pairs(tmp_path)


def test_schema_describes_itself():
    assert results.pair_schema()["description"]


def test_results_are_found_from_here_and_from_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert results.find("results/micro") == results.ROOT / "results/micro"
    results.write_json("results/micro/run.json", {})
    assert results.find("results/micro") == Path("results/micro")
    with pytest.raises(ValueError, match="no results in results/nano, seen from"):
        results.find("results/nano")
