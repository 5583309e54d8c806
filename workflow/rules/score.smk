rule complementarity:
    input:
        [LAYOUT.predictions(name) for name in STUDY.names],
    output:
        LAYOUT.complementarity("{split}"),
    params:
        names=STUDY.names,
    log:
        LOGS / "complementarity/{split}.log",
    shell:
        "{KT} complementarity --config {CONFIG} --split {wildcards.split} --out {output} --log {log}"


rule pairs:
    input:
        scores=LAYOUT.complementarity("validation") if NEEDS_SCORES else [],
    output:
        LAYOUT.table("pairs"),
    params:
        names=STUDY.names,
        rule=STUDY.pairs.plain(),
        size=STUDY.transfer.pairs_per_job,
        scores=lambda wildcards, input: f"--scores {input.scores}" if NEEDS_SCORES else "",
    log:
        LOGS / "pairs.log",
    shell:
        "{KT} pairs --config {CONFIG} {params.scores} --out {output} --log {log}"
