rule complementarity:
    input:
        [LAYOUT.predictions(name) for name in STUDY.names],
        STUDY.complementarity.class_embeddings or [],
    output:
        # Rows of the table before that still hold are kept, so it must still be there when the job starts.
        update(LAYOUT.complementarity("{split}")),
    log:
        LOGS / "complementarity/{split}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 4
    resources:
        mem_mb=4000,
    params:
        names=STUDY.names,
        measures=STUDY.complementarity.plain(),
    message:
        "complementary knowledge of all pairs on the {wildcards.split} images"
    shell:
        "kt complementarity --split {wildcards.split} --out={output:q} --threads {threads} --log={log:q}"


rule pairs:
    input:
        scores=LAYOUT.complementarity("validation") if NEEDS_SCORES else [],
        models=LAYOUT.table("zoo") if kt_pairs.needs_families(STUDY.pairs) else [],
        listed=[STUDY.pairs.path] if STUDY.pairs.select == "file" else [],
        gate=LAYOUT.table("zoo") if GATED else [],
    output:
        LAYOUT.table("pairs"),
    log:
        LOGS / "pairs.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=STUDY.names,
        rule=STUDY.pairs.plain(),
        size=STUDY.transfer.pairs_per_job,
        scores=lambda wildcards, input: (
            f"--scores={shlex.quote(input.scores)}" if NEEDS_SCORES else ""
        ),
        models=lambda wildcards, input: (
            f"--models={shlex.quote(input.models)}" if input.models else ""
        ),
    message:
        "choose the pairs"
    shell:
        "kt pairs {params.scores} {params.models} --out={output:q} --log={log:q}"
