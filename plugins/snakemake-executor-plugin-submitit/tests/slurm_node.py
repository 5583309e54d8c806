"""A real SLURM in a folder: munged, slurmctld, one slurmd per node, simulated GPUs, and optional accounting.

    with SlurmNode(folder, accounting=True) as node:
        subprocess.run(["sbatch", "job.sh"], env=node.env)
    with SlurmNode(folder, nodes=("a", "b", "c")) as cluster:
        cluster.kill_node("b")

It listens on loopback only, on free ports, and needs root (as in a container) and Debian's packages ``slurmctld``,
``slurmd``, ``slurm-client`` and ``munge``, and for accounting ``slurmdbd`` and ``mariadb-server``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import slurm_conf

DAEMONS = ("munged", "slurmctld", "slurmd")
ACCOUNTING_DAEMONS = ("mariadbd", "slurmdbd")


def missing(*, accounting: bool = False) -> str:
    """Reason why no node can be started here; empty if one can."""
    wanted = dict.fromkeys((*DAEMONS, "sbatch"), "slurmctld slurmd slurm-client munge")
    if accounting:
        wanted |= dict.fromkeys((*ACCOUNTING_DAEMONS, "mariadb-install-db"), "slurmdbd mariadb-server")
    absent = {name: package for name, package in wanted.items() if shutil.which(name, path=_path()) is None}
    if absent:
        return f"{', '.join(absent)} not installed (Debian: {' '.join(dict.fromkeys(absent.values()))})"
    return "" if os.geteuid() == 0 else "starting the SLURM daemons by hand needs root"


class SlurmNode:
    """One running cluster; its nodes are processes of this machine.

    Attributes:
        env: Environment in which SLURM's commands talk to it.
        nodes: Names of the nodes.
        limits_memory: Jobs above their memory are killed by the kernel.
        accounting: It keeps accounts, and takes only jobs of known accounts.
        may_mount: Jobs don't see what is in the folder ``unseen``.
    """

    def __init__(self, folder: Path, *, accounting: bool = False, nodes: Sequence[str] = ()) -> None:
        """Write the configuration; the only node has the name of this machine unless ``nodes`` are named."""
        self.folder, self.accounting, self.nodes = folder, accounting, nodes or (socket.gethostname(),)
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        # where the database's client looks for the server
        self.env["MYSQL_UNIX_PORT"] = str(folder / "run/mariadbd.sock")
        self.limits_memory = Path("/sys/fs/cgroup/memory").is_dir()
        for name in ("run", "log", "state", "spool", "db", "unseen"):
            (folder / name).mkdir(parents=True, mode=0o755)
        self.may_mount = True
        mount = subprocess.run(self._with_own_folder("unseen", "true"), capture_output=True, check=False)
        self.may_mount = mount.returncode == 0
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(self.nodes)}\n")
        slurm_conf.write(folder, self.nodes, accounting=accounting, limits_memory=self.limits_memory)

    def __enter__(self) -> SlurmNode:
        """Start the daemons and wait until the node accepts jobs."""
        munge = [f"--{name}-file={self.folder}/{path}" for name, path in _MUNGE_FILES.items()]
        self._start("munged", "--force", f"--socket={self.folder}/run/munge.sock", *munge)
        if self.accounting:
            self._start_accounting()
        self._start("slurmctld", "-f", self.env["SLURM_CONF"])
        for name in self.nodes:
            self.start_slurmd(name)
        self._wait_until_idle()
        return self

    def _wait_until_idle(self) -> None:
        try:
            self.wait_for_nodes("idle", *self.nodes)
        except TimeoutError as error:
            self.__exit__()
            log = (self.folder / "log/slurmctld.log").read_text()
            raise RuntimeError(f"the SLURM node did not come up:\n{log[-2000:]}") from error

    def wait_for_nodes(self, state: str, *names: str) -> None:
        """Wait until nodes are in a state (``idle``, ``down``, …), whether or not they answer."""
        shown = ("sinfo", "--Node", "--noheader", "--partition=main", "--format=%t", f"--nodes={','.join(names)}")
        _wait(lambda: {*self.run(*shown, check=False).replace("*", "").split()} == {state}, f"{state} of {names}")

    def _start_accounting(self) -> None:
        """A database on a socket in the folder, slurmdbd before it, and the cluster's name in it."""
        run, null = self.folder / "run", subprocess.DEVNULL
        storage = f"--no-defaults --user=root --datadir={self.folder}/db"
        storage += " --innodb-buffer-pool-size=16M --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=0"
        listen = f"--skip-networking --socket={run}/mariadbd.sock --pid-file={run}/mariadbd.pid"
        log = f"--log-error={self.folder}/log/mariadbd.log"
        command = f"mariadb-install-db {storage} --skip-test-db && exec mariadbd {storage} {listen} {log}"
        subprocess.Popen(
            self._with_own_folder("db", command),  # in memory, as a slow disk would take ten seconds
            env=self.env,
            stdin=null,
            stdout=null,
            stderr=null,
            start_new_session=True,
        )
        _wait(lambda: (run / "mariadbd.sock").exists(), "mariadbd")
        self._start("slurmdbd")
        _wait(lambda: "test" in self.run("sacctmgr", "-i", "add", "cluster", "test", check=False), "slurmdbd")

    def _with_own_folder(self, name: str, command: str) -> list[str]:
        """Wrap a shell command so that one of our folders is a private file system in memory for it."""
        if not self.may_mount:
            return ["sh", "-c", command]
        return ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {self.folder}/{name} && {command}"]

    @contextlib.contextmanager
    def configured(self, **values: object) -> Iterator[None]:
        """Change values in slurm.conf temporarily."""
        file = self.folder / "slurm.conf"
        text = changed = file.read_text()
        for key, value in values.items():
            changed, count = re.subn(rf"^{key}=.*$", f"{key}={value}", changed, flags=re.MULTILINE)
            assert count == 1, key
        try:
            self._reconfigure(changed)
            yield
        finally:
            self.clear()
            self._reconfigure(text)

    def _reconfigure(self, text: str) -> None:
        (self.folder / "slurm.conf").write_text(text)
        self.stop("slurmctld")
        self._start("slurmctld", "-f", self.env["SLURM_CONF"])
        self._wait_until_idle()

    def __exit__(self, *_: object) -> None:
        """End all jobs, then stop the daemons."""
        self.clear()
        for name in (*(f"slurmd.{node}" for node in self.nodes), "slurmctld", *reversed(ACCOUNTING_DAEMONS), "munged"):
            self.stop(name, signal.SIGKILL)  # their final output is not needed

    def clear(self) -> None:
        """End all jobs."""
        end = time.monotonic() + 100
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < end:
            self.run("scancel", "--user=root", check=False)
            time.sleep(0.3)

    def start_slurmd(self, name: str = "", *options: str, sees: str = "") -> None:
        """Start a node's daemon.

        Args:
            name: Name of the node, by default of the first.
            options: Flags of ``slurmd``; with ``-b`` the node has just booted.
            sees: A shell command that changes what the node sees, in a mount namespace of its own; by default the
                folder ``unseen`` is empty there.
        """
        name = name or self.nodes[0]
        command = f"exec slurmd -N {name} -f {self.env['SLURM_CONF']} {' '.join(options)}"
        if not self.may_mount:
            self._start("sh", "-c", command)
            return
        # a node has a name of its own, which it must be able to look up
        sees = sees or f"mount -t tmpfs none {self.folder}/unseen"
        named = f"hostname {name} && mount --bind {self.folder}/hosts /etc/hosts"
        self._start("unshare", "--mount", "--uts", "sh", "-c", f"{named} && {sees} && {command}")

    def repair(self) -> None:
        """End all jobs, and restart all nodes."""
        for name in self.nodes:
            self.fail(name)
            (self.folder / "clock" / name).unlink(missing_ok=True)
        self.clear()
        for name in self.nodes:
            self.start_slurmd(name, "-b")
            self.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)  # it may be drained
        self._wait_until_idle()

    def fail(self, name: str) -> None:
        """Kill a node, and give it up at once instead of after the controller's own time of half a minute."""
        self.kill_node(name)
        self.give_up(name)

    def give_up(self, name: str) -> None:
        """Mark a node as down, as the controller does if it does not answer."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=silent")

    def stop_slurmd(self, name: str = "") -> None:
        """Kill a node's daemon; its jobs continue."""
        self.stop(f"slurmd.{name or self.nodes[0]}", signal.SIGKILL)

    def set_clock(self, name: str, seconds: float) -> None:
        """Simulate a clock that is ahead of that of this machine, for jobs that start on a node from now on."""
        (self.folder / "clock" / name).write_text(f"{seconds}\n")

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all processes of its jobs at once, as a loss of power does."""
        self.stop_slurmd(name)
        for process in psutil.process_iter(["environ"]):
            environ = process.info["environ"] or {}
            if environ.get("SLURMD_NODENAME") == name and environ.get("SLURM_CONF") == self.env["SLURM_CONF"]:
                for each in (process, *_steps(process)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stop a daemon by its pid file and wait until it has ended."""
        file = self.folder / f"run/{name}.pid"
        if not file.exists():
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(int(file.read_text()))
            daemon.send_signal(number)
            with contextlib.suppress(TimeoutError):
                # it may stay a zombie until it is reaped
                _wait(lambda: daemon.status() == psutil.STATUS_ZOMBIE, name, 10)
            daemon.kill()
        file.unlink(missing_ok=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output; a crashed controller is started again, as on a site."""
        done = subprocess.run(command, env=self.env, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode and self._has_crashed("slurmctld"):
            log = (self.folder / "log/slurmctld.log").read_text()
            warnings.warn(f"slurmctld has crashed and is started again:\n{log[-1000:]}", stacklevel=2)
            self._start("slurmctld", "-f", self.env["SLURM_CONF"])
            return self.run(*command, check=check)
        if check:
            done.check_returncode()
        return done.stdout.strip()

    def _has_crashed(self, name: str) -> bool:
        """Whether a daemon has ended without being stopped, which leaves its pid file."""
        file = self.folder / f"run/{name}.pid"
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ValueError):
            return psutil.Process(int(file.read_text())).status() == psutil.STATUS_ZOMBIE
        return file.exists()

    def wait_for_state(self, job: str, state: str, seconds: float = 100) -> None:
        """Wait until a job is in a state."""
        _wait(lambda: self.state(job) == state, f"{state} of job {job}", seconds)

    def state(self, job: str) -> str:
        """State of a job in squeue; empty if squeue does not list it."""
        return self.run("squeue", "-r", "-h", "-t", "all", "-j", job, "--format=%T", check=False)

    def release_held(self) -> None:
        """Release jobs that SLURM holds for two minutes after a requeue; it refuses this for the first seconds.

        A job is left alone while processes of its last start are alive, whose end would be taken for the job's.
        """
        titles = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        for row in self.run("squeue", "-h", "-r", "-t", "PENDING", "--format=%A %r").splitlines():
            job, _, reason = row.partition(" ")
            if reason == "BeginTime" and not any(title.startswith(f"slurmstepd: [{job}.") for title in titles):
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def _start(self, *command: str) -> None:
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=30)


def _steps(process: psutil.Process) -> list[psutil.Process]:
    """The daemons of the step that a process belongs to."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [parent for parent in process.parents() if "".join(parent.cmdline()).startswith("slurmstepd")]
    return []


_MUNGE_FILES = {"key": "munge.key", "pid": "run/munged.pid", "log": "log/munged.log", "seed": "run/munged.seed"}


def _path() -> str:
    """Find a daemon; Debian installs them outside a user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _wait(until: Callable[[], bool], what: str, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
