# To the workflow all kinds of experiments are alike.
for kind in STUDY.experiments:

    rule:
        name:
            kind
        input:
            again(LAYOUT.experiment(kind, "{experiment}")),
            experiment_models(kind),
        output:
            experiment_tables(kind, "{experiment}"),
        log:
            LOGS / kind / "{experiment}.log",
        conda:
            "../../envs/kt.yaml"
        threads: PROCESSES
        resources:
            cpus_per_task=lambda wildcards, threads: threads,
            mem_mb=experiment_memory(kind),
            runtime=experiment_minutes(kind),
        params:
            kind=kind,
            plan=experiment_plan(kind),
        message:
            "{params.kind} {wildcards.experiment}"
        shell:
            "kt {params.kind} --experiment {wildcards.experiment}"
            " --threads {resources.cpus_per_task} --log={log:q}"
