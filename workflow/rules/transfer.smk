def teachers(wildcards):
    """Teachers that a job may read: all of the student's for the job that also does its controls, else its own."""
    everyone, chunk, size = TEACHERS[wildcards.student], int(wildcards.chunk), STUDY.transfer.pairs_per_job
    return everyone if chunk == 0 or NEEDS_SCORES else everyone[chunk * size : (chunk + 1) * size]


def cached_logits(wildcards):
    return [LAYOUT.predictions(name) for name in [wildcards.student, *teachers(wildcards)]]


rule transfer:
    input:
        # Where the names alone decide the pairs, a longer table must not run a job again whose part did not change.
        pairs=LAYOUT.table("pairs") if NEEDS_SCORES else ancient(LAYOUT.table("pairs")),
        weights=LAYOUT.weights("{student}"),
        logits=cached_logits,
    output:
        LAYOUT.transfer("{student}", "{chunk}"),
    params:
        methods={name: method.plain() for name, method in STUDY.transfer.methods.chosen().items()},
        seeds=STUDY.transfer.seeds,
        training=STUDY.transfer.training.plain(),
        teachers=teachers,
    log:
        LOGS / "transfer/{student}.{chunk}.log",
    threads: 1
    resources:
        mem_mb=1500,
    shell:
        "{KT} transfer --config {CONFIG} --student {wildcards.student} --chunk {wildcards.chunk}"
        " --pairs {input.pairs} --out {output} --threads {threads} --log {log}"


rule tables:
    input:
        [LAYOUT.transfer(student, chunk) for student, count in JOBS.items() for chunk in range(count)],
        LAYOUT.complementarity("test"),
        LAYOUT.table("zoo"),
        LAYOUT.table("pairs"),
    output:
        [LAYOUT.table(name) for name in ("transfers", "methods", "complementarity")],
        [LAYOUT.tables / f"{name}.csv" for name in ("zoo", "complementarity", "pairs", "transfers", "methods")],
    params:
        analysis=STUDY.analysis.plain(),
    log:
        LOGS / "tables.log",
    shell:
        "{KT} tables --config {CONFIG} --log {log}"
