"""The smoke profile end to end, through the Snakefile and the notebooks of every profile."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import copy_project

from experiment import results
from experiment.profiles import get

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.workflow


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def book(folder: Path) -> subprocess.CompletedProcess[str]:
    return call(folder, "experiment", "book", "--profile", "smoke")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project without anything that was run, built once in the smoke profile."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    done = book(folder)
    assert done.returncode == 0, done.stdout[-4000:]
    return folder, done.stdout


def test_run_shows_progress_and_prints_the_path_of_the_book(project):
    folder, output = project
    assert re.search(r"\d+:\d\d  step 31 of 31 done \(book\)", output)
    index = re.search(r"the book is at (\S+)$", output.strip())[1]
    assert Path(index) == folder / "artifacts/smoke/book/_build/html/index.html"
    assert Path(index).stat().st_size > 5000


def test_results_follow_the_schema_and_the_solver_keeps_its_promise(project):
    pairs = results.read_pairs(project[0] / "results" / "smoke")
    assert len(pairs) == 4
    for pair in pairs:
        found = pair["solutions"]
        assert found["quintic"]["value"] <= min(row[1] for row in found["quintic"]["trace"])
        assert found["paper"]["value"] <= found["exhaustive"]["value"]
        assert pair["provenance"]["profile"] == "smoke"


def test_pages_carry_the_names_of_their_pairs(project):
    page = project[0] / "artifacts/smoke/book/_build/html/pairs/CIFAR10-SVHN.html"
    assert "<h1>µCIFAR10 + µSVHN" in page.read_text(encoding="utf-8")


def test_second_run_has_nothing_to_do(project):
    done = book(project[0])
    assert done.returncode == 0 and "step 1" not in done.stdout, done.stdout


def test_changed_notebook_reruns_itself_and_what_follows_only(project):
    folder, _ = project
    source = folder / "notebooks" / "table1.md"
    text = source.read_text(encoding="utf-8")
    try:
        source.write_text(text + "\nOne more sentence.\n", encoding="utf-8")
        plan = call(folder, "snakemake", "--dry-run", "--quiet", "host", "--config",
                    "profile=smoke", "seed=0").stdout  # fmt: skip
    finally:
        source.write_text(text, encoding="utf-8")
    rules = set(re.findall(r"^(?:local)?rule (\w+):", plan, flags=re.M))
    assert rules == {"summary", "status", "book"}, plan


def test_failing_notebook_fails_the_build_and_keeps_its_traceback(project):
    folder, _ = project
    source = folder / "notebooks" / "figure1.md"
    text = source.read_text(encoding="utf-8")
    try:
        source.write_text(
            text + "\n```{code-cell} ipython3\nraise KeyError('on purpose')\n```\n", "utf-8"
        )
        done = book(folder)
    finally:
        source.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    report = folder / "artifacts/smoke/failed/figure1.txt"
    assert "on purpose" in report.read_text(encoding="utf-8")
    assert "failed/figure1.txt" in done.stdout
    assert not (folder / "artifacts/smoke/book/results/figure1.ipynb").exists()
    assert book(folder).returncode == 0  # goes on where it stopped


def test_damaged_weights_are_named_and_nothing_is_read_half(project):
    folder, _ = project
    weights = folder / "artifacts/smoke/fine_tuned/SVHN.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 2])
        done = call(folder, "paintlib", "curves", "--profile", "smoke", "SVHN")
    finally:
        weights.write_bytes(whole)
    assert done.returncode == 1
    assert re.search(r"SVHN\.safetensors cannot be read .* delete it and run", done.stdout)


def test_smoke_pages_are_reproduced_by_nbval(project):
    folder, _ = project
    pages = sorted((folder / "artifacts/smoke/book").glob("*/*.ipynb"))
    pages = [p for p in pages if p.parent.name in ("pairs", "results")]
    assert len(pages) == 19
    done = call(folder, "pytest", "--nbval", "-q", "-p", "no:cacheprovider", *map(str, pages))
    assert done.returncode == 0, done.stdout[-4000:]


def test_pages_are_byte_stable(project):
    folder, _ = project
    page = folder / "artifacts/smoke/book/pairs/CIFAR10-MNIST.ipynb"
    before = page.read_bytes()
    assert nbformat.reads(before.decode(), as_version=4).cells[0].source.startswith("# µCIFAR10")
    page.unlink()
    assert book(folder).returncode == 0
    assert page.read_bytes() == before


def test_benchmark_solves_the_same_pairs_in_every_way(project):
    folder, _ = project
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", dirs_exist_ok=True)
    options = "--profile smoke --paths 1 --repeats 2 --folder bench"
    done = subprocess.run(
        [sys.executable, "benchmarks/solving.py", *options.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = results.read_json(next((folder / "bench").glob("solving-*.json")))
    ways = record["paths"][0]["ways"]
    found = ways["exhaustive, shared curves"]
    supported_tasks, images = len(found["alpha"]), get("smoke").validation_images
    for name in ("PAINT's loop", "PAINT's loop, one process", "exhaustive, each pair"):
        assert ways[name]["alpha"].items() <= found["alpha"].items(), name
        assert ways[name]["forwards"] == supported_tasks * 21 * 2 * images
    # the supported ends are shared by all paths of the profile
    shared = supported_tasks * images / len(get("smoke").patching)
    assert found["forwards"] == 20 * (supported_tasks + 1) * images + images + shared
    samples = ways["quintic, shared samples"]["forwards"]
    assert samples == 4 * (supported_tasks + 1) * images + images + shared
    for supported, value in ways["quintic, shared ends"]["value"].items():
        assert value <= found["value"][supported] * (1 + 1e-3), supported
    assert len(record["searches"]) == supported_tasks
    for row in record["searches"]:
        methods = row["methods"]
        paid = {name: way["evaluations"] for name, way in methods.items()}
        steps = [f"exhaustive, step {step}" for step in ("0.1", "0.05", "0.01")]
        assert [paid[step] for step in steps] == [9, 19, 99]
        assert paid["quintic"] <= 6 and paid["quintic, paper's variant"] == 20
        assert paid["quintic"] < paid["Brent (scipy, bounded)"] < paid["golden section (scipy)"]
        excess = [methods[step]["excess"] for step in steps]
        assert excess == sorted(excess, reverse=True)  # each grid holds the one before
        assert all(-1e-6 < way["excess"] < 1e-2 for way in methods.values())
    for operation in record["operations"].values():
        assert operation["ratio"]["low"] > 0
