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
        mem_mb=1500,
    params:
        recipe=recipe,
    message:
        "weights of {wildcards.model}"
    shell:
        "kt weights --model {wildcards.model} --threads {threads} --log {log}"


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
        mem_mb=1500,
    message:
        "predictions of {wildcards.model}"
    shell:
        "kt predictions --model {wildcards.model} --threads {threads} --log {log}"


rule zoo:
    input:
        [LAYOUT.member(name) for name in STUDY.names],
        [LAYOUT.predictions(name) for name in STUDY.names],
    output:
        LAYOUT.table("zoo"),
    log:
        LOGS / "zoo.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=STUDY.names,
    message:
        "table of models"
    shell:
        "kt zoo --out {output} --log {log}"
