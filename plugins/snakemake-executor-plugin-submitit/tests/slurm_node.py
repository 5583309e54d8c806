"""A real SLURM of one node, started by hand in a folder: munged, slurmctld, slurmd, made-up GPUs.

    with SlurmNode(folder) as node:
        subprocess.run(["sbatch", "job.sh"], env=node.env)

It listens on loopback only, on free ports, and needs root (as in a container) and Debian's packages ``slurmctld``,
``slurmd``, ``slurm-client`` and ``munge``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
GPUS = 4

_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# the control groups of jobs bear their ids, so those of two clusters on one machine must not meet
FirstJobId={ctld_port}000
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=5
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# without it jobs take all memory and run one at a time
DefMemPerCPU=500
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=300
MaxArraySize=1001
MaxJobCount=20000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:fake:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30 State=UP
PartitionName=cancel Nodes={host} MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=high Nodes={host} MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""
_CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace={memory}
ConstrainDevices=no
"""


def missing() -> str:
    """Why no node can be started here; empty if it can."""
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "starting the SLURM daemons by hand needs root"


class SlurmNode:
    """One running cluster.

    Attributes:
        env: Environment in which SLURM's commands talk to it.
        limits_memory: Jobs above their memory are killed by the kernel.
    """

    def __init__(self, folder: Path) -> None:
        """Write the configuration."""
        self.folder, self.host = folder, socket.gethostname()
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self.limits_memory = Path("/sys/fs/cgroup/memory").is_dir()
        for name in ("run", "log", "state", "spool"):
            (folder / name).mkdir(parents=True, mode=0o755)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        for index in range(GPUS):
            # SLURM takes only device nodes for GPUs; these are /dev/null
            os.mknod(folder / f"gpu{index}", 0o20666, os.makedev(1, 3))
        ctld_port, slurmd_port = _free_ports(2)
        (folder / "slurm.conf").write_text(
            _SLURM_CONF.format(
                host=self.host,
                folder=folder,
                ctld_port=ctld_port,
                slurmd_port=slurmd_port,
                gpus=GPUS,
                task_plugin="task/cgroup" if self.limits_memory else "task/none",
            )
        )
        (folder / "gres.conf").write_text(f"NodeName={self.host} Name=gpu Type=fake File={folder}/gpu[0-{GPUS - 1}]\n")
        (folder / "cgroup.conf").write_text(_CGROUP_CONF.format(memory="yes" if self.limits_memory else "no"))

    def __enter__(self) -> SlurmNode:
        """Start the daemons and wait until the node takes jobs."""
        munge = [f"--{name}-file={self.folder}/{path}" for name, path in _MUNGE_FILES.items()]
        self._start("munged", "--force", f"--socket={self.folder}/run/munge.sock", *munge)
        self._start("slurmctld", "-f", self.env["SLURM_CONF"])
        self.start_slurmd()
        end = time.monotonic() + 30
        while "idle" not in self.run("sinfo", "--noheader", "--format=%t", check=False):
            if time.monotonic() > end:
                self.__exit__()
                log = (self.folder / "log/slurmctld.log").read_text()
                raise RuntimeError(f"the SLURM node did not come up:\n{log[-2000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        """End all jobs, then stop the daemons."""
        self.clear()
        for name in reversed(DAEMONS):
            self.stop(name)

    def clear(self) -> None:
        """End all jobs."""
        end = time.monotonic() + 20
        while self.run("squeue", "--noheader", check=False) and time.monotonic() < end:
            self.run("scancel", "--user=root", check=False)
            time.sleep(0.3)

    def start_slurmd(self) -> None:
        """Start the node's daemon."""
        self._start("slurmd", "-N", self.host, "-f", self.env["SLURM_CONF"])

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stop a daemon by its pid file and wait until it has gone."""
        file = self.folder / f"run/{name}.pid"
        if not file.exists():
            return
        pid = int(file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            end = time.monotonic() + 10
            while time.monotonic() < end:
                os.kill(pid, 0)
                time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
        file.unlink(missing_ok=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of SLURM's commands and return its output."""
        done = subprocess.run(command, env=self.env, check=check, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def wait_for_state(self, job: str, state: str, seconds: float = 20) -> None:
        """Wait until a job is in a state."""
        end = time.monotonic() + seconds
        while (found := self.run("squeue", "-r", "-h", "-t", "all", "-j", job, "--format=%T", check=False)) != state:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} is {found}, not {state}")
            time.sleep(0.3)

    def release(self, job: str) -> None:
        """Start a requeued job now; SLURM holds it back for two minutes, and refuses this for the first seconds."""
        self.wait_for_state(job, "PENDING")
        end = time.monotonic() + 40
        while self.run("squeue", "-r", "-h", "-j", job, "--format=%T", check=False) == "PENDING":
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} does not start again")
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            time.sleep(0.5)

    def _start(self, *command: str) -> None:
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=30)


_MUNGE_FILES = {"key": "munge.key", "pid": "run/munged.pid", "log": "log/munged.log", "seed": "run/munged.seed"}


def _path() -> str:
    """Debian keeps daemons where a user's PATH does not look."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
