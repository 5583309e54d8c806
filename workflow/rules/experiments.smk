rule amalgamate:
    input:
        experiment_models("amalgamate"),
    output:
        experiment_tables("amalgamate", "{experiment}"),
    log:
        LOGS / "amalgamate/{experiment}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=experiment_memory("amalgamate"),
        runtime=experiment_minutes("amalgamate"),
    params:
        kind="amalgamate",
        plan=experiment_plan("amalgamate"),
    message:
        "{params.kind} {wildcards.experiment}"
    shell:
        "kt {params.kind} --experiment {wildcards.experiment}"
        " --threads {resources.cpus_per_task} --log {log}"


use rule amalgamate as flow with:
    input:
        experiment_models("flow"),
    output:
        experiment_tables("flow", "{experiment}"),
    log:
        LOGS / "flow/{experiment}.log",
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=experiment_memory("flow"),
        runtime=experiment_minutes("flow"),
    params:
        kind="flow",
        plan=experiment_plan("flow"),
