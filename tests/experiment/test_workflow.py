"""The smoke profile end to end, through make, the Snakefile and the notebooks.

Of the summary pages it makes a few, among them the two that the dry run of `paper`, which makes all
others, has not. For the rest of its book the reference's are put there.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from project import ROOT, copy_project, git, make

from experiment import results

pytestmark = pytest.mark.workflow
A = Path("artifacts/smoke")
PAGES = ("all_pairs", "claims", "figure1", "joint", "pictures", "twins")


def book(folder: Path) -> subprocess.CompletedProcess[str]:
    return make(folder, "book", "PROFILE=smoke")


def snakemake(folder: Path, *arguments: str) -> str:
    """Call Snakemake itself and return what it says."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--config", "profile=smoke", "seed=0"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plan(folder: Path, *changed: str) -> set[str]:
    """Return the rules that would run again if some files had changed."""
    for name in changed:
        file = folder / name
        file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    said = snakemake(folder, "book", "--dry-run", "--quiet", "host")
    if changed:
        git(folder, "checkout", "--", *changed)
    return set(re.findall(r"^(?:local)?rule (\w+):", said, flags=re.M)) - {"book"}


class Project(NamedTuple):
    folder: Path
    output: str  # of the run that ended
    refused: str  # of another one meanwhile
    killed: str  # of the one that was killed
    kept: dict[Path, int]  # what the killed run had finished, and when


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, built once in the smoke profile: killed half-way, and called again."""
    others = [page for page in (ROOT / "book/results").glob("*.ipynb") if page.stem not in PAGES]
    unmade = [f"notebooks/{page.stem}.md" for page in others]
    folder = copy_project(tmp_path_factory.mktemp("project"), without=unmade)
    (folder / A / "book/results").mkdir(parents=True)
    for page in others:
        shutil.copy(page, folder / A / "book/results")
    log = tmp_path_factory.mktemp("log")
    with (log / "killed").open("w") as said:
        run = subprocess.Popen(
            ["make", "book", "PROFILE=smoke"], cwd=folder, stdout=said, stderr=said,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )  # fmt: skip
    while not (done := list((folder / A / "fine_tuned").glob("[!.]*.safetensors"))):
        assert run.poll() is None
        time.sleep(0.1)
    second = book(folder)
    run.terminate()  # as `kill PID` does; kill -9 is a test of locks
    run.wait()
    assert second.returncode != 0
    done += [folder / A / "zero_shot.safetensors", *(folder / A / "tasks").iterdir()]
    kept = {file: file.stat().st_mtime_ns for file in done}
    third = book(folder)
    assert third.returncode == 0, third.stdout[-4000:]
    return Project(folder, third.stdout, second.stdout, (log / "killed").read_text(), kept)


def test_killed_run_goes_on_and_a_second_run_is_refused(project):
    assert re.search(r"another run \(process \d+ on \S+\) is going on in", project.refused)
    # and not "Will exit after finishing currently running jobs"
    assert "Terminating processes on user request" in project.killed
    assert len(project.kept) > 5
    for file, time_ns in project.kept.items():
        assert file.stat().st_mtime_ns == time_ns, f"{file} was made again"


def test_run_shows_progress_prints_its_book_and_leaves_the_clone_clean(project):
    folder, output = project.folder, project.output
    total = int(re.search(r"(\d+) of \1 steps \(100%\) done", output)[1])
    assert total > 10 and f"1 of {total} steps" in output
    index = Path(re.search(r"the book is at (\S+)", output)[1])
    assert index == folder / A / "book/_build/html/index.html" and index.stat().st_size > 5000
    assert git(folder, "status", "--porcelain") == ""


def test_results_follow_the_schema_and_the_solvers_keep_their_promise(project):
    pairs = results.read_pairs(project.folder / A / "results/smoke")
    assert len(pairs) == 4
    for pair in pairs:
        grid, quintic, ours = (pair["solutions"][k] for k in ("grid", "quintic", "log_quintic"))
        assert quintic["value"] <= grid["value"] and quintic["evaluations"] == 20
        assert ours["value"] <= min(row[1] for row in ours["trace"]) and ours["evaluations"] <= 6
        assert pair["run"]["profile"] == "smoke"


def test_one_file_holds_what_changes_from_run_to_run(project):
    said = results.read_json(project.folder / A / "results/smoke/provenance.json")
    assert said["commit"] == git(project.folder, "rev-parse", "--short=10", "HEAD").strip()
    assert said["versions"].keys() >= {"python", "torch", "open_clip_torch"} and said["device"]
    assert {"pretrain", "solve/SVHN", "pair/MNIST", "page/claims"} <= said["seconds"].keys()


def test_pages_carry_the_names_of_their_pairs(project):
    page = project.folder / A / "book/_build/html/pairs/CIFAR10-SVHN.html"
    assert "<h1>µCIFAR10 + µSVHN" in page.read_text(encoding="utf-8")


def test_steps_run_again_when_what_they_read_has_changed_and_only_then(project):
    folder = project.folder
    assert plan(folder) == set()
    pages = {"summary", "provenance", "site"}
    assert plan(folder, "notebooks/all_pairs.md") == pages
    assert plan(folder, "notebooks/pair.md") == pages - {"summary"} | {"pair"}
    assert plan(folder, "book/index.md") == {"site"}
    solved = pages | {"solve", "pair", "join"}
    assert plan(folder, "paintlib/solver.py") == solved
    assert plan(folder, "paintlib/losses.py") >= solved | {"baseline"}
    trained = plan(folder, "experiment/training.py")
    assert trained >= solved | {"pretrain", "finetune"} and not trained & {"render", "caption"}
    assert plan(folder, "experiment/twins/canvas.py") >= {"render", "caption", "pretrain", "solve"}


def test_failing_notebook_fails_the_build_and_pages_are_byte_stable(project):
    folder = project.folder
    page = folder / A / "book/pairs/CIFAR10-MNIST.ipynb"
    before = page.read_bytes()
    assert nbformat.reads(before.decode(), as_version=4).cells[0].source.startswith("# µCIFAR10")
    source, cell = folder / "notebooks/figure1.md", "raise KeyError('on purpose')"
    text = source.read_text(encoding="utf-8")
    source.write_text(f"{text}\n```{{code-cell}} ipython3\n{cell}\n```\n", encoding="utf-8")
    done = book(folder)
    git(folder, "checkout", "--", "notebooks/figure1.md")
    assert done.returncode != 0
    report = folder / A / "failed/figure1.txt"
    assert "on purpose" in report.read_text(encoding="utf-8")
    assert "failed/figure1.txt" in done.stdout
    assert not (folder / A / "book/results/figure1.ipynb").exists()
    page.unlink()
    figure = A / "book/results/figure1.ipynb"
    snakemake(folder, str(page.relative_to(folder)), str(figure), "--cores", "2")
    assert page.read_bytes() == before and (folder / figure).exists()
    assert git(folder, "status", "--porcelain") == ""


def test_damaged_weights_are_named_and_nothing_is_read_half(project):
    folder = project.folder
    weights = folder / A / "fine_tuned/SVHN.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    done = subprocess.run(
        [sys.executable, "-m", "experiment", "solve", "--profile", "smoke", "SVHN"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    weights.write_bytes(whole)
    assert done.returncode == 1
    assert re.search(r"SVHN\.safetensors cannot be read .* delete it and run", done.stderr)
