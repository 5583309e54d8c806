"""Unit tests without a cluster: verdicts, rules, requests, names."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_submitit import checks, commands, request, slurm, surroundings
from snakemake_executor_plugin_submitit.runs import label
from snakemake_executor_plugin_submitit.verdict import (
    DEFAULT_RULES,
    UNANSWERED,
    Evidence,
    Rule,
    Verdict,
    hint,
    judge,
    lasting,
    parse_rules,
)

V = Verdict
GRACE = 30.0


@pytest.mark.parametrize(
    ("state", "reason", "result", "hint", "seconds", "verdict"),
    [
        # the job reports success: nothing else counts
        ("RUNNING", "None", V.COMPLETED, None, 0, V.COMPLETED),
        (None, "", V.COMPLETED, None, 0, V.COMPLETED),
        ("COMPLETED", "None", V.COMPLETED, V.OUT_OF_MEMORY, 0, V.COMPLETED),
        # the job reports a failure: the scheduler may know the cause a little later
        ("RUNNING", "None", V.CODE_ERROR, None, 0, None),
        ("COMPLETING", "None", V.CODE_ERROR, None, 0, None),
        ("COMPLETED", "None", V.CODE_ERROR, None, 0, V.CODE_ERROR),
        ("RUNNING", "None", V.CODE_ERROR, None, GRACE, V.CODE_ERROR),
        (None, "", V.CODE_ERROR, None, GRACE, V.CODE_ERROR),
        ("OUT_OF_MEMORY", "OutOfMemory", V.CODE_ERROR, None, 0, V.OUT_OF_MEMORY),
        ("FAILED", "NonZeroExitCode", V.CODE_ERROR, V.OUT_OF_MEMORY, 0, V.OUT_OF_MEMORY),
        ("NODE_FAIL", "NodeDown", V.CODE_ERROR, None, 0, V.NODE_FAILURE),
        ("PREEMPTED", "None", V.CODE_ERROR, None, 0, V.PREEMPTED),
        ("CANCELLED", "None", V.CODE_ERROR, None, 0, V.CANCELLED),
        ("TIMEOUT", "TimeLimit", V.CODE_ERROR, None, 0, V.TIMED_OUT),
        # the job itself knows
        ("RUNNING", "None", V.OUT_OF_MEMORY, None, 0, V.OUT_OF_MEMORY),
        ("COMPLETED", "None", V.TIMED_OUT, None, 0, V.TIMED_OUT),
        ("RUNNING", "None", V.PREEMPTED, None, 0, V.PREEMPTED),
        # only the scheduler knows: final after the grace time, because a requeue passes through these states
        ("PENDING", "Resources", None, None, 1e6, None),
        ("PENDING", "BeginTime", None, None, 1e6, None),
        ("SIGNALING", "None", None, None, 1e6, None),
        ("A_STATE_OF_NEXT_YEAR", "None", None, None, 1e6, None),
        (UNANSWERED, "sacct does not answer", None, None, 1e6, None),
        ("PREEMPTED", "None", None, None, 0, None),
        ("PREEMPTED", "None", None, None, GRACE, V.PREEMPTED),
        ("NODE_FAIL", "NodeDown", None, None, 0, None),
        ("NODE_FAIL", "NodeDown", None, None, GRACE, V.NODE_FAILURE),
        ("BOOT_FAIL", "None", None, None, GRACE, V.NODE_FAILURE),
        ("PENDING", "launch failed requeued held", None, None, 0, V.NODE_FAILURE),
        ("CANCELLED", "None", None, None, GRACE, V.CANCELLED),
        ("TIMEOUT", "TimeLimit", None, None, GRACE, V.TIMED_OUT),
        ("DEADLINE", "None", None, None, GRACE, V.TIMED_OUT),
        ("OUT_OF_MEMORY", "OutOfMemory", None, None, GRACE, V.OUT_OF_MEMORY),
        ("FAILED", "NonZeroExitCode", None, None, GRACE, V.CODE_ERROR),
        ("FAILED", "NonZeroExitCode", None, V.OUT_OF_MEMORY, GRACE, V.OUT_OF_MEMORY),
        ("FAILED", "NonZeroExitCode", None, V.TIMED_OUT, GRACE, V.TIMED_OUT),
        ("FAILED", "BadConstraints", None, None, 0, V.NOT_SUBMITTED),
        # success without a result does not count
        ("COMPLETED", "None", None, None, 0, None),
        ("COMPLETED", "None", None, None, GRACE, V.LOST),
        (None, "", None, None, 0, None),
        (None, "", None, None, GRACE, V.LOST),
    ],
)
def test_verdict(
    state: str | None, reason: str, result: V | None, hint: V | None, seconds: float, verdict: V | None
) -> None:
    assert judge(Evidence(state, reason, result, hint, seconds), GRACE) is verdict


def test_hints_in_the_output_of_slurm() -> None:
    assert hint("slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=3.0.") is V.OUT_OF_MEMORY
    assert hint("slurmstepd: error: Detected 1 oom_kill event in StepId=3.0.") is V.OUT_OF_MEMORY
    assert hint("srun: error: vm: task 0: User defined signal 2") is V.TIMED_OUT
    assert hint("srun: error: Node failure on n1") is V.NODE_FAILURE
    assert hint("srun: error: Task launch for StepId=3.0 failed on node n1: Connection reset by peer") is V.NODE_FAILURE
    assert (
        hint("slurmstepd-n1: error: *** JOB 3 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***")
        is V.PREEMPTED
    )
    assert hint("srun: error: vm: task 0: Exited with exit code 1") is None
    assert hint("Out Of Memory\nStarting with JobEnvironment()\nfine") is None


def test_rules_override_defaults_one_by_one() -> None:
    rules = parse_rules(["preempted=retry:3", "code-error=fail", "lost=workflow"])
    assert rules[V.PREEMPTED] == Rule("retry", 3)
    assert rules[V.CODE_ERROR] == Rule("fail")
    assert rules[V.LOST] == Rule("workflow")
    assert rules[V.NODE_FAILURE] == DEFAULT_RULES[V.NODE_FAILURE]


@pytest.mark.parametrize("text", ["preemted=fail", "preempted", "preempted=retry", "preempted=retry:x", "=fail"])
def test_rules_refuse_what_they_do_not_know(text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        parse_rules([text])


def test_request_understands_both_families_of_names() -> None:
    ours = request.read({"partition": "gpu", "gpus": 2, "gpu_type": "a100", "runtime": 90, "mem_mb": 1500}, 4)
    theirs = request.read(
        {"slurm_partition": "gpu", "gpu": 2, "gpu_model": "a100", "runtime": 90, "mem_mb": 1500}, 1 + 3
    )
    assert (
        ours == theirs == request.read({"slurm_partition": "gpu", "gpus": "a100:2", "runtime": 90, "mem_mb": 1500}, 4)
    )
    found = ours.parameters()
    assert (found["gpus_per_node"], found["time"], found["mem"], found["cpus_per_task"]) == ("a100:2", 90, "1500M", 4)
    assert request.Request().parameters()["time"] is None


def test_flags_of_a_rule_override_those_of_all() -> None:
    found = request.read({"sbatch": "--exclude=n2 --exclusive"}, 1, flags="--exclude=n1 --comment='a b'")
    assert dict(found.extra) == {"exclude": "n2", "exclusive": True, "comment": "a b"}
    with pytest.raises(ValueError, match=r"sbatch flag '-x'"):
        request.parse_flags("-x n1")


@pytest.mark.parametrize(
    ("flag", "owned"),
    [
        ("--ntasks-per-node=2", "ntasks-per-node"),
        ("--nodes=2", "nodes"),
        ("--node=2", "nodes"),  # sbatch accepts abbreviations
        ("--arr=0-3", "array"),
        ("--clusters=other", "clusters"),
        ("--mem=1G", "mem"),
        ("--mem-per-c=1G", "mem-per-cpu"),
        ("--wait", "wait"),
        ("--parsable", "parsable"),
    ],
)
def test_flags_that_the_executor_sets_itself_are_refused(flag: str, owned: str) -> None:
    with pytest.raises(ValueError, match=rf"sbatch flag '{flag}': the executor sets --{owned} itself; use "):
        request.parse_flags(flag)


def test_flags_that_change_nothing_or_name_nothing_of_ours_are_taken() -> None:
    assert request.parse_flags("--nodes=1 --ntasks=1") == ()
    kept = "--exclusive --exclude=n1 --wait-all-nodes=1 --mem-bind=local --gres=gpu:1 --export=ALL,A=1 --no-requeue"
    assert {f"--{name}" for name, _ in request.parse_flags(kept)} == {flag.partition("=")[0] for flag in kept.split()}
    with pytest.raises(ValueError, match=r"--export=NONE.*write --export=ALL"):
        request.parse_flags("--export=NONE")


def test_memory_and_cores_of_a_gpu_take_the_place_of_those_of_the_job() -> None:
    found = request.read({"gpus": 1, "mem_mb": 500, "sbatch": "--mem-per-gpu=8G --cpus-per-gpu=4"}, 2).parameters()
    assert found["additional_parameters"] == {"mem-per-gpu": "8G", "cpus-per-gpu": "4"}
    assert "mem" not in found
    assert (found["cpus_per_task"], found["srun_args"]) == (None, ["--ntasks=1"])


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"mem_mb_per_cpu": 100}, ("mem_per_cpu", "100M")),
        ({"mem_mb_per_cpu": 100, "mem_mb": 200}, ("mem_per_cpu", "100M")),
        ({"mem_mb_per_cpu": 100, "mem_mb": 400}, ("mem", "400M")),  # what a retry raised
    ],
)
def test_the_larger_memory_counts(resources: dict[str, int], asked: tuple[str, str]) -> None:
    found = request.read(resources, 2).parameters()
    assert {key: found[key] for key in ("mem", "mem_per_cpu") if key in found} == dict([asked])


def test_a_gpu_type_without_gpus_is_an_error() -> None:
    with pytest.raises(ValueError, match="gpu_type='a100' requests a GPU type, but gpus is 0"):
        request.read({"gpu_type": "a100"}, 1)


@pytest.mark.parametrize(
    ("gres", "types"),
    [
        ("(null)", []),
        ("gpu:4", [""]),
        ("gpu", [""]),
        ("gpu:2080ti:4(S:0-1),shard:8", ["2080ti"]),
        ("gpu:1g.10gb:7,gpu:a100:1(S:0,1),mps:a100:200", ["1g.10gb", "a100"]),
        ("gpu:4090:2(IDX:0-1)", ["4090"]),
    ],
)
def test_types_of_gpus(gres: str, types: list[str]) -> None:
    assert checks.gpu_types(gres) == types


def test_variables_that_would_override_a_request_are_taken_out() -> None:
    environ = {"SBATCH_PARTITION": "a", "SBATCH_TIMELIMIT": "5", "SLURM_NTASKS": "4", "SLURM_CONF": "/c", "HOME": "/h"}
    defaults, told = surroundings.clear(environ)
    assert environ == {"SLURM_CONF": "/c", "HOME": "/h"}
    assert defaults == {"partition": "a"}
    assert told == [
        "SBATCH_TIMELIMIT, SLURM_NTASKS would change the resources of jobs, and are not passed on: use resources, or "
        "--submitit-sbatch"
    ]
    assert request.read({}, 1, defaults=defaults).partition == "a"
    assert request.read({"partition": "b"}, 1, defaults=defaults).partition == "b"
    inside = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
    assert surroundings.clear(inside) == ({}, ["running inside a SLURM job; its SLURM_ variables are not passed on"])
    with pytest.raises(ValueError, match="SLURM_CLUSTERS=other is set"):
        surroundings.clear({"SLURM_CLUSTERS": "other"})


@pytest.mark.parametrize(
    ("reason", "lasts"),
    [
        ("PartitionDown", True),
        ("ReqNodeNotAvail, UnavailableNodes:n1", True),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", True),
        ("AssocGrpBillingMinutes", True),
        ("QOSMaxCpuPerJobLimit", True),
        ("BadConstraints", True),
        ("JobHeldUser", True),
        ("job requeued in held state", True),
        ("DependencyNeverSatisfied", True),
        ("QOSGrpWallLimit", True),
        ("AssocGrpCPURunMinutesLimit", False),
        ("QOSMaxJobsPerUserLimit", False),
        ("Priority", False),
        ("Resources", False),
        ("None", False),
        ("BeginTime", False),
    ],
)
def test_reasons_that_do_not_pass(reason: str, lasts: bool) -> None:
    assert lasting(reason) is lasts


def test_features_that_no_node_has_together_are_refused_and_all_else_is_left_to_slurm() -> None:
    nodes = {frozenset({"fast", "a100"}), frozenset({"large"}), frozenset({"(null)"})}
    site = {"main": checks.Partition(minutes=60, features=nodes), "big": checks.Partition(minutes=60)}
    for fine in ("", "fast", "fast&a100", "fast|large", "[fast*2&large*1]", "fast&other", "large"):
        checks.compare("one", request.read({"constraint": fine}, 1), site)
    with pytest.raises(
        ValueError, match=r"^rule one: no node in partition main has all features of 'fast&large'; nodes"
    ):
        checks.compare("one", request.read({"constraint": "fast&large", "partition": "main"}, 1), site)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("infinite", float("inf")), ("1-00:00:00", 1440), ("2:30:00", 150), ("30:00", 30), ("7-12:00:00", 10800)],
)
def test_time_limits_of_sinfo(text: str, minutes: float) -> None:
    assert checks.minutes(text) == minutes


@pytest.mark.parametrize(("wanted", "minutes", "delay"), [(90, 0, 90), (90, 60, 90), (90, 2, 30), (90, 1, 1)])
def test_the_signal_does_not_come_when_the_job_starts(wanted: int, minutes: int, delay: int) -> None:
    assert slurm._delay(wanted, minutes) == delay


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[0,2-4%5]", ["7_0", "7_2", "7_3", "7_4"]),
        ("7_[1-7:3]", ["7_1", "7_4", "7_7"]),
    ],
)
def test_array_tasks_in_the_books_are_told_apart(job: str, tasks: list[str]) -> None:
    assert slurm._tasks(job) == tasks


@pytest.mark.parametrize(
    ("refusal", "passes"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates …", True),
        ("sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: Batch job submission failed: Job violates …", False),
        ("sbatch: error: … Job violates accounting/QOS policy (job submit limit, user's size and/or time …)", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.", True),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", False),
        *(
            (f"sbatch: error: Batch job submission failed: {words}", True)
            for words in (
                "Zero Bytes were transmitted or received",
                "Unexpected message received",
                "Slurm backup controller in standby mode",
                "I/O error writing script/environment to file",
                "Connection reset by peer",
                "No route to host",
                "Unable to contact slurm controller (connect failure)",
                "Required node not available (down, drained or reserved)",
                "Requested partition configuration not available now",
                "Invalid authentication credential",
                "Socket timed out on send/recv operation",
            )
        ),
        ("sbatch: error: If munged is up, restart with --num-threads=10\nsbatch: error: Munge encode failed", True),
        *(
            (f"sbatch: error: Batch job submission failed: {words}", False)
            for words in (
                "Requested node configuration is not available",
                "Requested time limit is invalid (missing or exceeds some limit)",
                "Memory specification can not be satisfied",
                "More processors requested than permitted",
                "User's group not permitted to use this partition",
                "Access/permission denied",
                "Pathname of a file, directory or other parameter too long",
            )
        ),
    ],
)
def test_a_refusal_for_now_is_not_one_for_good(refusal: str, passes: bool) -> None:
    assert slurm._may_pass(refusal) is passes


def test_messages_become_one_line() -> None:
    both = commands.message("sbatch: note\nsbatch: error: One\nsbatch: error: Two: three\n")
    assert both == "One; Two: three"
    assert commands.message("sbatch: unrecognized option '--x'\nTry help\n") == "unrecognized option '--x'"
    assert commands.message("") == "no message"


def _job(rule: str, **wildcards: str) -> SimpleNamespace:
    return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards_dict=wildcards, is_group=lambda: False)


def test_log_names_say_rule_and_wildcards() -> None:
    assert label(_job("transfer", student="resnet18", chunk="3")) == "transfer.chunk=3.student=resnet18"
    assert label(_job("get", path="a/b c/../d")) == "get.path=a-b-c-..-d"
    group = SimpleNamespace(is_group=lambda: True, groupid="g", jobs=[_job("b", i="2"), _job("a", i="1")])
    assert label(group) == "g.a.i=1.and-1-more"
    long = [label(_job("r", w="ä" * 300 + end)) for end in "xy"]
    assert long[0] != long[1]
    assert all(len(name.encode()) < 250 for name in long)
