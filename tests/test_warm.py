"""Forks of the warm process do what processes of their own would, and nothing outlives anything."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from paintlib import warm

ROOT = Path(__file__).resolve().parent.parent
linux = pytest.mark.skipif(
    sys.platform != "linux",
    reason="commands fork on Linux only: macOS's libraries do not outlive a fork; what happens "
    "elsewhere is tested on every system by test_elsewhere_nothing_is_served",
)

# a warm process without packages, whose command shows what a fork works with
SERVER = """
import os, pathlib, sys, time
from paintlib import warm
warm.PACKAGES = ()

def command(arguments):
    if arguments[0] == "show":
        print(arguments[1:], os.getcwd(), os.environ.get("COLOUR"), sys.stdin.read())
        print("careful", file=sys.stderr)
        return 7
    if arguments[0] == "exit":
        raise SystemExit(3)
    if arguments[0] == "raise":
        raise KeyError("on purpose")
    if arguments[0] == "die":
        os.kill(os.getpid(), 9)
    pathlib.Path(arguments[1]).write_text(str(os.getpid()))
    time.sleep(60)

warm.serve(sys.argv[1], int(sys.argv[2]), command)
"""
ASK = "import sys; from paintlib import warm; sys.exit(warm.forward(sys.argv[1:]))"


def wait_for(condition, what):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(what)


def alive(pid):
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


@pytest.fixture
def server(tmp_path):
    address = tmp_path / "warm"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(address), str(os.getpid())], cwd=ROOT
    )
    wait_for(address.exists, "the server does not start")
    yield {**os.environ, warm.ADDRESS: str(address), "PYTHONPATH": str(ROOT)}, process
    process.kill()
    process.wait()


def ask(environment, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", ASK, *arguments],
        env=environment, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


@linux
def test_fork_has_the_files_folder_environment_and_arguments_of_its_asker(server, tmp_path):
    environment, _ = server
    long = "x" * 100_000  # with the environment more than a pipe holds
    done = ask({**environment, "COLOUR": "blue"}, "show", "µ", long, cwd=tmp_path, input="typed")
    assert done.returncode == 7
    assert done.stdout == f"{['µ', long]} {tmp_path} blue typed\n"
    assert done.stderr == "careful\n"


@linux
@pytest.mark.parametrize(
    ("command", "status", "text"),
    [("exit", 3, ""), ("raise", 1, "KeyError: 'on purpose'"), ("die", 1, "die was killed")],
)
def test_fork_that_fails_says_so_and_harms_no_other(server, command, status, text):
    environment, _ = server
    done = ask(environment, command)
    assert done.returncode == status
    assert text in done.stderr
    assert ask(environment, "show", input="").returncode == 7


@linux
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_fork_ends_with_its_asker(server, tmp_path, how):
    environment, process = server
    note = tmp_path / "pid"
    asker = subprocess.Popen(
        [sys.executable, "-c", ASK, "sleep", str(note)], env=environment, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: note.exists() and note.read_text(), "the fork does not start")
    fork = int(note.read_text())
    assert alive(fork)
    asker.send_signal(how)
    asker.wait()
    wait_for(lambda: not alive(fork), "the fork outlives its asker")
    assert process.poll() is None


@linux
def test_asker_ends_with_its_parent(server, tmp_path):
    environment, _ = server
    note = tmp_path / "pid"
    ask_ = [sys.executable, "-c", ASK, "sleep", str(note)]
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    middle = subprocess.Popen([sys.executable, "-c", parent, *ask_], env=environment)
    wait_for(lambda: note.exists() and note.read_text(), "the fork does not start")
    middle.kill()
    middle.wait()
    wait_for(lambda: not alive(int(note.read_text())), "the fork outlives its asker's parent")


@linux
def test_server_ends_with_its_parent(tmp_path):
    address = tmp_path / "warm"
    script = (
        "import os, subprocess, sys\n"
        "process = subprocess.Popen([*sys.argv[1:], str(os.getpid())])\n"
        "print(process.pid, flush=True)\n"
        "process.wait()"
    )
    command = [sys.executable, "-c", script, sys.executable, "-c", SERVER, str(address)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        wait_for(address.exists, "the server does not start")
        parent.kill()
    wait_for(lambda: not alive(pid), "the server outlives its parent")


@linux
def test_server_whose_parent_ended_before_it_served_ends_too(tmp_path):
    command = [sys.executable, "-c", SERVER, str(tmp_path / "warm"), "999999999"]
    assert subprocess.run(command, cwd=ROOT, timeout=30).returncode == 0


def test_elsewhere_nothing_is_served(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "Popen", None)  # starting anything would fail
    with warm.serving() as environment:
        assert environment == {}


@pytest.mark.parametrize("address", ["", "/nowhere/at/all"])
def test_without_a_server_a_command_is_left_to_its_own_process(monkeypatch, address):
    monkeypatch.setenv(warm.ADDRESS, address)
    assert warm.forward(["status"]) is None


@linux
def test_packages_start_no_thread_and_leave_the_project_to_the_fork(tmp_path):
    code = (
        "import importlib, os, sys; from paintlib import warm\n"
        "for name in warm.PACKAGES: importlib.import_module(name)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
        "print(sorted(m for m in sys.modules if m.startswith('paintlib')))\n"
        "import torch; print(torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **warm.THREADS}, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # a fork copies only the thread that forks: whatever another one holds would stay locked
    assert done.stdout.splitlines() == ["1", "['paintlib', 'paintlib.warm']", "False"], done


@linux
def test_page_from_the_warm_process_is_the_page_of_a_process_of_its_own(tmp_path):
    environment = {**os.environ, **warm.THREADS, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "paintlib", "page", "notebooks/figure2.md"]
    results = ["-p", "results", str(ROOT / "results" / "micro")]
    pages = {}
    with warm.serving() as found:
        wait_for(Path(found[warm.ADDRESS]).exists, "the server does not start")
        for name, served in {"warm": found, "cold": {}}.items():
            target = tmp_path / name / "figure2.ipynb"
            done = subprocess.run(
                [*command, str(target), *results], cwd=ROOT, env={**environment, **served},
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "stopped" not in done.stderr
            pages[name] = target.read_bytes()
    assert pages["warm"] == pages["cold"]
    cells = nbformat.reads(pages["warm"].decode(), as_version=4).cells
    assert any("image/svg+xml" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
