"""Configuration files of a SLURM of one or several nodes on this machine, in a separate folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

_GPUS = 4
# types of GPUs, one per node; further nodes have none
_TYPES = ("fake", "2080ti")

_SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
# control groups are named after job ids, so two clusters on one machine need different ids
FirstJobId={ctld_port}000
SlurmctldPort={ctld_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
SwitchType=switch/none
MpiDefault=none
TaskProlog={folder}/prolog.sh
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
{accounting}
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=5
# a busy machine may take long to end a step, and the node would be drained
UnkillableStepTimeout=900
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# without it jobs take all memory and run one at a time
DefMemPerCPU=500
GresTypes=gpu
SlurmdParameters=config_overrides
KillWait=5
MessageTimeout=10
MinJobAge=300
MaxArraySize=1001
MaxJobCount=20000
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=120 State=UP
PartitionName=cancel Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""
_NODE = """\
NodeName={name} NodeAddr=127.0.0.1 Port={port} Weight={weight} Feature=on_{name}{gres} CPUs=8 \
RealMemory=64000 State=UNKNOWN"""
_NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
# jobs need a known account and quality of service, and keep to the limits of both
_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""
_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CommunicationParameters=NoInAddrAny
"""
# what it prints is added to the environment of a task
_PROLOG = """#!/bin/sh
read -r seconds 2>/dev/null < {folder}/clock/$SLURMD_NODENAME || exit 0
echo "export NODE_CLOCK=$seconds"
echo "export PYTHONPATH={folder}/clock:$PYTHONPATH"
"""
# A node's clock that differs: Python's programs there, such as Snakemake, see it, and set files to its time.
_CLOCK = """
import os, time
utime, now, ahead = os.utime, time.time, float(os.environ["NODE_CLOCK"])
time.time = lambda: now() + ahead
def shifted(path, times=None, **options):
    utime(path, times or (0 if options.get("ns") else (time.time(),) * 2), **options)
os.utime = shifted
"""
_CGROUP_CONF = """
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace={memory}
ConstrainDevices=no
"""


def write(folder: Path, nodes: Sequence[str], *, accounting: bool, limits_memory: bool) -> None:
    """Write all of them, with free ports, and make the devices that simulate GPUs.

    Args:
        folder: Where they go, and where the daemons keep their files.
        nodes: Names of the nodes.
        accounting: Whether slurmdbd keeps accounts.
        limits_memory: Whether control groups hold jobs to their memory.
    """
    for index in range(_GPUS):
        # SLURM accepts only device nodes as GPUs; these are /dev/null
        os.mknod(folder / f"gpu{index}", 0o20666, os.makedev(1, 3))
    types, host = dict(zip(nodes, _TYPES, strict=False)), socket.gethostname()
    ctld_port, dbd_port, *ports = _free_ports(2 + len(nodes))
    lines = [
        _NODE.format(
            name=name, port=port, weight=weight, gres=f" Gres=gpu:{types[name]}:{_GPUS}" if name in types else ""
        )
        for weight, (name, port) in enumerate(zip(nodes, ports, strict=True), 1)
    ]
    (folder / "slurm.conf").write_text(
        _SLURM_CONF.format(
            host=host,
            folder=folder,
            ctld_port=ctld_port,
            nodes="\n".join(lines),
            task_plugin="task/cgroup" if limits_memory else "task/none",
            accounting=_ACCOUNTING.format(folder=folder, dbd_port=dbd_port) if accounting else _NO_ACCOUNTING,
        )
    )
    devices = f"File={folder}/gpu[0-{_GPUS - 1}]"
    (folder / "gres.conf").write_text(
        "".join(f"NodeName={name} Name=gpu Type={kind} {devices}\n" for name, kind in types.items())
    )
    prolog = folder / "prolog.sh"
    prolog.write_text(_PROLOG.format(folder=folder))
    prolog.chmod(0o755)
    (folder / "clock").mkdir()
    (folder / "clock/sitecustomize.py").write_text(_CLOCK)
    (folder / "cgroup.conf").write_text(_CGROUP_CONF.format(memory="yes" if limits_memory else "no"))
    dbd = folder / "slurmdbd.conf"
    dbd.touch(mode=0o600)
    dbd.write_text(_SLURMDBD_CONF.format(folder=folder, dbd_port=dbd_port))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
