rule search:
    input:
        again(LAYOUT.transfer("{student}", "search")),
        **files_of(trial_models),
    output:
        LAYOUT.transfer("{student}", "search"),
    log:
        LOGS / "transfer/{student}.search.log",
    conda:
        "../../envs/kt.yaml"
    threads: PROCESSES
    resources:
        **resources_of_student("search", trial_images),
    params:
        teachers=lambda wildcards: TRIALS[wildcards.student],
        candidates={
            name: [method.settings() for method in found.values()]
            for name, found in STUDY.transfer.candidates().items()
        },
        seeds=STUDY.transfer.search.seeds if STUDY.transfer.search else [],
        training=STUDY.transfer.training.plain(),
    message:
        "candidates of the search on {wildcards.student}"
    shell:
        "kt search --student {wildcards.student} --out={output:q}"
        " --threads {resources.cpus_per_task} --log={log:q}"


rule choose:
    input:
        again(LAYOUT.table("search")),
        [LAYOUT.transfer(student, "search") for student in TRIALS],
    output:
        LAYOUT.tables / "search.csv",
        table=LAYOUT.table("search"),
    log:
        LOGS / "choose.log",
    conda:
        "../../envs/kt.yaml"
    message:
        "choose the parameters of the searched methods"
    shell:
        "kt choose --out={output.table:q} --log={log:q}"


rule transfer:
    input:
        again(LAYOUT.transfer("{student}", "{chunk}")),
        # Where names alone decide the pairs, a longer table must not run the job again.
        pairs=pairs_table,
        search=LAYOUT.table("search") if TRIALS else [],
        weights=transfer_weights,
        logits=cached_logits,
    output:
        LAYOUT.transfer("{student}", "{chunk}"),
    log:
        LOGS / "transfer/{student}.{chunk}.log",
    conda:
        "../../envs/kt.yaml"
    threads: PROCESSES
    resources:
        **resources_of_student("transfer", training_images),
    params:
        methods={
            name: method.settings()
            for name, method in STUDY.transfer.methods.chosen().items()
        },
        seeds=STUDY.transfer.seeds,
        training=STUDY.transfer.training.plain(),
        search=STUDY.transfer.search.plain() if TRIALS else {},
        export=STUDY.transfer.export,
        teachers=teachers,
        size=STUDY.transfer.pairs_per_job,
        models=lambda wildcards: (
            store.digest([RECIPES[name] for name in teachers(wildcards)])
            if GATED
            else ""
        ),
        pairs=lambda wildcards, input: (
            f"--pairs={shlex.quote(input.pairs)}" if NEEDS_SCORES else ""
        ),
    message:
        "transfer to {wildcards.student}, part {wildcards.chunk}"
    shell:
        "kt transfer --student {wildcards.student} --chunk {wildcards.chunk}"
        " {params.pairs} --out={output:q} --threads {resources.cpus_per_task} --log={log:q}"


rule groups:
    input:
        again(LAYOUT.transfer("{student}", "groups")),
        **files_of(group_models),
    output:
        LAYOUT.transfer("{student}", "groups"),
    log:
        LOGS / "transfer/{student}.groups.log",
    conda:
        "../../envs/kt.yaml"
    threads: PROCESSES
    resources:
        **resources_of_student("groups", group_images),
    params:
        groups=STUDY.groups.plain() if STUDY.groups else {},
        methods={
            name: method.settings()
            for name, method in (
                STUDY.groups.methods.chosen().items() if STUDY.groups else ()
            )
        },
        seeds=STUDY.transfer.seeds,
        training=STUDY.transfer.training.plain(),
        export=STUDY.transfer.export,
    message:
        "transfer from groups of teachers to {wildcards.student}"
    shell:
        "kt groups --student {wildcards.student} --out={output:q}"
        " --threads {resources.cpus_per_task} --log={log:q}"


rule tables:
    input:
        again(LAYOUT.table("transfers")),
        [
            LAYOUT.transfer(student, chunk)
            for student, count in JOBS.items()
            for chunk in range(count)
        ],
        [LAYOUT.transfer(student, "groups") for student in GROUPS],
        [experiment_tables(*found) for found in STUDY.each_experiment()],
        LAYOUT.complementarity("test"),
        LAYOUT.table("zoo"),
        LAYOUT.table("pairs"),
    output:
        [
            LAYOUT.table(name)
            for name in ("transfers", "methods", "complementarity", *DETAILS)
        ],
        [
            LAYOUT.tables / f"{name}.csv"
            for name in (
                "zoo",
                "complementarity",
                "pairs",
                "transfers",
                "methods",
                *DETAILS,
            )
        ],
    log:
        LOGS / "tables.log",
    conda:
        "../../envs/kt.yaml"
    params:
        analysis=STUDY.analysis.plain(),
        jobs=JOBS,
        groups=GROUPS,
        experiments=[[kind, name] for kind, name, _ in STUDY.each_experiment()],
    message:
        "final tables"
    shell:
        "kt tables --log={log:q}"
