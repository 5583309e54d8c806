rule member:
    input:
        again(LAYOUT.member("{model}")),
        LAYOUT.data / "meta.json",
        lambda wildcards: member(wildcards).checkpoint or [],
    output:
        # Weights that are still those of the recipe are kept, so they must still be there when the job starts.
        update(LAYOUT.weights("{model}")),
        update(LAYOUT.member("{model}")),
        LAYOUT.predictions("{model}"),
    log:
        LOGS / "member/{model}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=member_memory,
        runtime=member_minutes,
    params:
        recipe=recipe,
        features=STUDY.features,
        views=STUDY.plain()["transfer"]["views"],
        top_k=(
            STUDY.transfer.top_k
            if STUDY.transfer.answers == "auto"
            else [STUDY.transfer.top_k, STUDY.transfer.answers]
        ),
        version=kt_predictions.VERSION,
    message:
        "weights and predictions of {wildcards.model}"
    shell:
        "kt member --model {wildcards.model} --threads {resources.cpus_per_task} --log={log:q}"


rule zoo:
    input:
        again(LAYOUT.table("zoo")),
        [LAYOUT.predictions(name) for name in STUDY.members],
        STUDY.zoo.overrides or [],
        STUDY.zoo.published or [],
    output:
        LAYOUT.table("zoo"),
    log:
        LOGS / "zoo.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=STUDY.members,
    message:
        "table of models"
    shell:
        "kt zoo --out={output:q} --log={log:q}"
