import fcntl

import pytest

from paintlib import workflow
from paintlib.experiment import Run

PLAN = """Job stats:
job         count
--------  -------
curves          2
pretrain        1
total           3
"""


def test_progress_says_step_count_and_time_left():
    progress = workflow.Progress({"pretrain": 100.0, "curves": 30.0}, cores=2)
    lines = [text for line in PLAN.splitlines() if (text := progress.read(line))]
    assert lines == ["0:00  3 steps to do, about 2:10 left"]
    assert "step 1 of 3 done (pretrain), about 0:30 left" in progress.read(
        "Finished jobid: 4 (Rule: pretrain)"
    )
    assert progress.read("fine-tune on X:  10%|##   | 5/50 [00:01<00:09, 5it/s]").strip()
    assert progress.read("Select jobs to execute...") is None
    assert progress.read("paintlib: no such task")


def test_times_of_the_last_run_set_expectations(tmp_path):
    run = Run.of("smoke", root=tmp_path)
    assert workflow.expected_seconds(run) == {}
    run.results.mkdir(parents=True)
    (run.results / "timings.csv").write_text(
        "step,name,seconds\npair,A-B,10.0\npair,A-C,20.0\npage,claims,4.0\n"
    )
    assert workflow.expected_seconds(run) == {"pair": 15.0, "summary": 4.0}


def test_two_runs_in_one_folder_are_refused(tmp_path):
    (tmp_path / "artifacts").mkdir()
    with (tmp_path / "artifacts" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another `make book` is running"):
            workflow.book(Run.of("smoke", root=tmp_path), 1)
