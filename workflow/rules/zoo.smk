def member(wildcards):
    return STUDY.zoo.models[wildcards.model]


def recipe(wildcards):
    """All that determines a member's weights and properties; only a change of these runs it again."""
    return [
        member(wildcards).plain(),
        STUDY.zoo.input_of(wildcards.model).plain(),
        STUDY.zoo.modules,
    ]


rule weights:
    input:
        LAYOUT.data / "meta.json",
        lambda wildcards: member(wildcards).checkpoint or [],
    output:
        LAYOUT.weights("{model}"),
        LAYOUT.member("{model}"),
    params:
        recipe=recipe,
    log:
        LOGS / "weights/{model}.log",
    threads: 1
    resources:
        mem_mb=1500,
    shell:
        "{KT} weights --config {CONFIG} --model {wildcards.model} --threads {threads} --log {log}"


rule predictions:
    input:
        LAYOUT.data / "meta.json",
        LAYOUT.weights("{model}"),
        LAYOUT.member("{model}"),
    output:
        LAYOUT.predictions("{model}"),
    log:
        LOGS / "predictions/{model}.log",
    threads: 1
    resources:
        mem_mb=1500,
    shell:
        "{KT} predict --config {CONFIG} --model {wildcards.model} --threads {threads} --log {log}"


rule zoo:
    input:
        [LAYOUT.member(name) for name in STUDY.names],
        [LAYOUT.predictions(name) for name in STUDY.names],
    output:
        LAYOUT.table("zoo"),
    params:
        names=STUDY.names,
    log:
        LOGS / "zoo.log",
    shell:
        "{KT} zoo --config {CONFIG} --out {output} --log {log}"
