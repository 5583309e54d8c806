"""A Python that has imported everything already: ``warm.python() -m kt ...`` is a fork of one prepared process.

A study of the tests starts dozens of processes; most of their time would go into importing torch, timm and seaborn.
Each fork is a process of its own, with its folder, environment and output; Snakemake, started in this way, starts its
stages in this way, too. A signal to it does not reach the fork: tests that kill processes or measure them use
``sys.executable``.
"""

from __future__ import annotations

import array
import atexit
import functools
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import coverage

IMPORTED = ("kt.cli", "kt.stages", "kt.study.load", "kt.analysis.analyse", "kt.figures", "kt.report", "kt.status")
IMPORTED += ("timm", "torch._dynamo", "matplotlib.pyplot", "seaborn", "scipy.stats", "snakemake.cli")

CLIENT = """
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    rights = socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2])
    server.sendmsg([len(request).to_bytes(4, "little")], [rights])
    server.sendall(request)
    status = server.recv(1)
sys.exit(status[0] if status else "the process has died")
"""


@functools.cache
def python() -> str:
    """Path of the program; the process behind it ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))
    client = shlex.join([sys.executable, "-SEc", CLIENT.format(address=str(folder / "socket"))])
    (folder / "python").write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    (folder / "python").chmod(0o755)
    # coverage begins in each fork, with the work
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, __file__, str(folder)]
    server = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)  # closes its standard input, and waits until it has cleaned up
    return str(folder / "python")


def serve(folder: Path) -> None:
    """Fork for every request, until standard input is closed."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.executable = str(folder / "python")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the dead
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(64)
        os.write(1, b"ready\n")
        while True:
            ready = select.select([0, listener], [], [])[0]
            if 0 in ready:
                return shutil.rmtree(folder)
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                work(connection)
            connection.close()


def work(connection: socket.socket) -> None:
    """Be the process that a client asks for, tell it the exit status, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, sent, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", sent[0][2])
    wanted, request = int.from_bytes(head, "little"), b""
    while len(request) < wanted:
        request += connection.recv(wanted - len(request))
    (_, module, *arguments), cwd, environment = json.loads(request)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:], sys.path[0] = arguments, cwd
    found: list[int] = []

    def end() -> None:
        connection.send(bytes(found))
        os._exit(0)

    atexit.register(end)  # registered first, it runs last
    coverage.process_startup()  # if the tests are run with it
    found.append(status_of(module))
    sys.exit()


def status_of(module: str) -> int:
    """Run a module as ``python -m`` does."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status: Any = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
