"""The checks of `make gpu-check`, on a CPU: their logic, and that each can fail."""

import io
import re

import pytest
import torch
from project import ROOT, git

from experiment import session, training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import gpu_check

        yield gpu_check


@pytest.fixture(scope="module")
def case(check):
    return check.random_case(12, 4, tiny=True)


def test_a_device_that_computes_alike_holds(check, case):
    *rest, path = check.check_losses(case, CPU)
    assert path.holds and rest[0].holds and rest[2].holds
    (resumed,) = check.check_resumed(case, CPU)
    assert resumed.holds and resumed.found.startswith("2 steps were left")


def test_a_device_that_computes_otherwise_fails(check, case, monkeypatch):
    towers = []

    def wrong(self, device):
        towers.append(tower := on(self, device))
        if len(towers) == 2:
            with torch.no_grad():
                tower.proj[0].mul_(1.1)
        return tower

    on = check.Case.on
    monkeypatch.setattr(check.Case, "on", wrong)
    losses, _, gradient, _ = check.check_losses(case, CPU)
    assert not losses.holds and not gradient.holds


def test_tf32_fails(check, case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    noise = list(check.check_losses(case, CPU))[1]
    assert not noise.holds and "TF32 is ON" in noise.found


def test_a_resumed_training_that_forgot_its_moments_fails(check, case, monkeypatch):
    def forgetful(file):
        state, metadata = load(file)
        return {n: v * ("exp_avg." not in n) for n, v in state.items()}, metadata

    load = training.weights.load
    monkeypatch.setattr(training.weights, "load", forgetful)
    (resumed,) = check.check_resumed(case, CPU)
    assert not resumed.holds


def test_lock_of_two_cards_holds_and_one_that_locks_nothing_fails(check, monkeypatch, tmp_path):
    class Card:
        def __init__(self, index):
            self.uuid = index

    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Card)
    card = torch.device("cuda")
    assert next(check.check_lock(card)) == (
        "lock of a GPU",
        True,
        "2 of 3 steps had a GPU of their own",
    )
    monkeypatch.setattr(session, "hold", lambda file: io.StringIO())
    assert not next(check.check_lock(card)).holds


def test_rates_are_held_against_bare_loops(check, case):
    verdicts = list(check.check_rates(case, CPU, {"forward": 1e-3, "training": 1e9}))
    assert [v.holds for v in verdicts[:2]] == [True, False]
    assert [v.check for v in verdicts][2] == "bandwidth of `set_`"


def test_page_gives_no_verdict_without_a_gpu_and_counts_the_hours(check):
    verdicts = [check.Verdict("one", True, "x"), check.Verdict("other", False, "y")]
    about = {"device": "Card", "kind": "cpu", "versions": {"torch": "2"}}
    rates = {"decode": 50.0, "forward": 1000.0, "training": 300.0}
    without = check.page(verdicts, rates, about)
    assert "No GPU: not checked" in without and without.count("| no GPU: not checked |") == 2
    with_gpu = check.page(verdicts, rates, about | {"kind": "cuda"})
    assert "1 of 2 checks hold" in with_gpu and "| other | FAILS | y |" in with_gpu
    total = float(re.search(r"\*\*([\d.]+) hours\*\*", with_gpu)[1])
    twice = check.page(verdicts, {what: rate / 2 for what, rate in rates.items()}, about)
    assert float(re.search(r"\*\*([\d.]+) hours\*\*", twice)[1]) == pytest.approx(
        2 * total, abs=0.2
    )


def test_all_code_that_only_a_gpu_reaches_is_listed(check):
    files = git(ROOT, "grep", "-l", "cuda", "--", "experiment", "paintlib", "benchmarks").split()
    assert set(files) - {"benchmarks/gpu_check.py"} == check.CUDA_ONLY.keys()
