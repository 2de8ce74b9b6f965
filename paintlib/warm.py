"""Run the steps of a run in forks of one warm process, which has imported the heavy packages.

Importing torch, open_clip and papermill takes longer than many a step. `serving` starts a process
that does so once; `forward` asks it for a fork that runs a command with the asker's files, folder
and environment, and dies with the asker. Where nothing is served (a cluster, a shell, a system
whose forks are not safe) a command runs in its own process, to the same result.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

Command = Callable[[list[str]], int]

ADDRESS = "PAINTLIB_WARM"  # the environment variable that holds the path of the socket
# what the thread pools read while they load, so that a fork computes as a process of its own would;
# a short spin: threads that wait for long starve whatever else runs on the machine
THREADS = {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "3000"}
# only other people's packages: the fork reads the project's own modules as they are on disk
PACKAGES = (
    "torch", "open_clip", "papermill", "jupytext", "ipykernel.kernelapp", "matplotlib.pyplot",
    "matplotlib_inline.config", "pandas.io.formats.style", "scipy.interpolate", "scipy.optimize",
    "jsonschema", "safetensors.torch",
)  # fmt: skip
_READ_AT_IMPORT = {
    **THREADS,
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as ipykernel sets it
    "JPY_PARENT_PID": "1",  # no kernel looks for its parent: `_follow` does
}


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Start the warm process; yield the environment that lets commands find it.

    Commands given before its imports are done run on their own.
    """
    if sys.platform != "linux":  # the system libraries of macOS do not outlive a fork
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="paintlib-") as folder:
        address = str(Path(folder, "warm"))
        command = [sys.executable, "-m", "paintlib", "serve", address, str(os.getpid())]
        environment = {**os.environ, **_READ_AT_IMPORT}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as process:
            try:
                yield {ADDRESS: address}
            finally:
                process.terminate()


def serve(address: str, parent: int, command: Command) -> None:
    """Import the packages, then fork for every command that is asked for, until the parent ends.

    Args:
        address: the path of the socket.
        parent: the process to end with, even where that ends before the imports are done.
        command: runs the arguments of a command line; returns its exit status.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the askers, and they their forks
    for name in PACKAGES:
        importlib.import_module(name)
    with _Server(address, parent, command) as server:
        server.serve_forever()


def forward(arguments: list[str]) -> int | None:
    """Have a command run in a fork of the warm process; wait for it and return its exit status.

    Returns:
        None where no warm process answers.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError:  # not yet, or not any more
            return None
        request = {
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
        }
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
        parent = os.getppid()
        connection.settimeout(1.0)
        while os.getppid() == parent:  # else nobody waits for the command any more
            with contextlib.suppress(TimeoutError):
                status = connection.recv(1)
                if not status:
                    print(f"paintlib: {arguments[0]} was killed", file=sys.stderr)
                return status[0] if status else 1
    return 1


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = sys.maxsize  # it must never wait for one to end: a page waits for its kernel
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: str, parent: int, command: Command) -> None:
        self.parent, self.command = parent, command
        super().__init__(address, _Fork)

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            sys.exit()


class _Fork(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Run one command; this is the fork already."""
        connection: socket.socket = self.request
        _, files, *_ = socket.recv_fds(connection, 1, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        request = json.loads(connection.makefile().readline())
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        threading.Thread(target=_follow, args=[connection], daemon=True).start()
        try:
            status = self.server.command(request["arguments"])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status]))


def _follow(connection: socket.socket) -> None:
    """End this process when the asker is gone."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
