rule weights:
    input:
        LAYOUT.data / "meta.json",
        lambda wildcards: member(wildcards).checkpoint or [],
    output:
        LAYOUT.weights("{model}"),
        LAYOUT.member("{model}"),
    log:
        LOGS / "weights/{model}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=lambda wildcards, attempt: memory(
            "weights", wildcards.model, ["zoo"], recipe_batch(wildcards), attempt
        ),
        runtime=lambda wildcards, attempt: minutes(
            wildcards.model, recipe_images(wildcards), attempt
        ),
    params:
        recipe=recipe,
    message:
        "weights of {wildcards.model}"
    shell:
        "kt weights --model {wildcards.model} --threads {resources.cpus_per_task} --log={log:q}"


rule predictions:
    input:
        LAYOUT.data / "meta.json",
        LAYOUT.weights("{model}"),
        LAYOUT.member("{model}"),
    output:
        LAYOUT.predictions("{model}"),
    log:
        LOGS / "predictions/{model}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=lambda wildcards, attempt: memory(
            "predictions", wildcards.model, READ, guess.EVALUATED, attempt
        ),
        # a forward pass is a third of a step of training
        runtime=lambda wildcards, attempt: minutes(
            wildcards.model,
            sum(shown(split) for split in READ) / 3,
            attempt,
        ),
    params:
        features=STUDY.features,
        views=STUDY.plain()["transfer"]["views"],
        top_k=(
            STUDY.transfer.top_k
            if STUDY.transfer.answers == "auto"
            else [STUDY.transfer.top_k, STUDY.transfer.answers]
        ),
        version=kt_predictions.VERSION,
    message:
        "predictions of {wildcards.model}"
    shell:
        "kt predictions --model {wildcards.model} --threads {resources.cpus_per_task} --log={log:q}"


rule zoo:
    input:
        [LAYOUT.member(name) for name in STUDY.members],
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
