rule transfer:
    input:
        # Where names alone decide the pairs, the job knows its own; a longer table must not run it again.
        pairs=LAYOUT.table("pairs") if NEEDS_SCORES else [],
        weights=LAYOUT.weights("{student}"),
        logits=cached_logits,
    output:
        LAYOUT.transfer("{student}", "{chunk}"),
    log:
        LOGS / "transfer/{student}.{chunk}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        mem_mb=1500,
    params:
        methods={
            name: method.plain()
            for name, method in STUDY.transfer.methods.chosen().items()
        },
        seeds=STUDY.transfer.seeds,
        training=STUDY.transfer.training.plain(),
        teachers=teachers,
        pairs=f"--pairs {LAYOUT.table('pairs')}" if NEEDS_SCORES else "",
    message:
        "transfer to {wildcards.student}, part {wildcards.chunk}"
    shell:
        "kt transfer --student {wildcards.student} --chunk {wildcards.chunk}"
        " {params.pairs} --out {output} --threads {threads} --log {log}"


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
