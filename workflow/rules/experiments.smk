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
        mem_mb=lambda wildcards, attempt: PLAIN_MB * 2 ** (attempt - 1),
        runtime=LONGEST,
    params:
        section="amalgamate",
        plan=experiment_plan("amalgamate"),
    message:
        "{rule} {wildcards.experiment}"
    shell:
        "kt {params.section} --experiment {wildcards.experiment}"
        " --threads {resources.cpus_per_task} --log {log}"


use rule amalgamate as flow with:
    input:
        experiment_models("flow"),
    output:
        experiment_tables("flow", "{experiment}"),
    log:
        LOGS / "flow/{experiment}.log",
    params:
        section="flow",
        plan=experiment_plan("flow"),
