def training_images(wildcards):
    """Images that a job's missing trainings see, each as often as it is seen."""
    plan, methods = STUDY.transfer, STUDY.transfer.methods.chosen().values()
    controls = sum(method.control for method in methods)
    mine = min(len(teachers(wildcards)), plan.pairs_per_job)
    own = controls if wildcards.chunk == "0" else 0
    units = (mine * (len(methods) - controls) + own) * len(plan.seeds)
    waiting = SURVEY.waiting.get(wildcards.student, units)
    seen = plan.training.epochs * images_of("transfer")
    return min(units, waiting) * seen


rule transfer:
    input:
        # Where names alone decide the pairs, the job knows its own; a longer table must not run it again.
        pairs=LAYOUT.table("pairs") if NEEDS_SCORES else [],
        weights=LAYOUT.weights("{student}"),
        # Ancient: a longer table must not run everybody's jobs again.
        models=ancient(LAYOUT.table("zoo")) if GATED else [],
        logits=cached_logits,
    output:
        LAYOUT.transfer("{student}", "{chunk}"),
    log:
        LOGS / "transfer/{student}.{chunk}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=lambda wildcards, attempt: memory(
            "transfer",
            wildcards.student,
            READ,
            STUDY.transfer.training.batch_size,
            attempt,
        ),
        runtime=lambda wildcards: minutes(wildcards.student, training_images(wildcards)),
    params:
        methods={
            name: method.plain()
            for name, method in STUDY.transfer.methods.chosen().items()
        },
        seeds=STUDY.transfer.seeds,
        training=STUDY.transfer.training.plain(),
        teachers=teachers,
        models=lambda wildcards: (
            store.digest([RECIPES[name] for name in teachers(wildcards)])
            if GATED
            else ""
        ),
        pairs=f"--pairs {LAYOUT.table('pairs')}" if NEEDS_SCORES else "",
    message:
        "transfer to {wildcards.student}, part {wildcards.chunk}"
    shell:
        "kt transfer --student {wildcards.student} --chunk {wildcards.chunk}"
        " {params.pairs} --out {output} --threads {resources.cpus_per_task} --log {log}"


rule tables:
    input:
        [
            LAYOUT.transfer(student, chunk)
            for student, count in JOBS.items()
            for chunk in range(count)
        ],
        LAYOUT.complementarity("test"),
        LAYOUT.table("zoo"),
        LAYOUT.table("pairs"),
    output:
        [LAYOUT.table(name) for name in ("transfers", "methods", "complementarity")],
        [
            LAYOUT.tables / f"{name}.csv"
            for name in ("zoo", "complementarity", "pairs", "transfers", "methods")
        ],
    log:
        LOGS / "tables.log",
    conda:
        "../../envs/kt.yaml"
    params:
        analysis=STUDY.analysis.plain(),
    message:
        "final tables"
    shell:
        "kt tables --log {log}"
