rule complementarity:
    input:
        again(LAYOUT.complementarity("{split}")),
        [LAYOUT.predictions(name) for name in STUDY.names],
        STUDY.complementarity.class_embeddings or [],
    output:
        # Rows of the table before that still hold are kept, so it must still be there when the job starts.
        update(LAYOUT.complementarity("{split}")),
    log:
        LOGS / "complementarity/{split}.log",
    conda:
        "../../envs/kt.yaml"
    # Of few models it takes seconds: then it does not wait for several cores at once, beside trainings.
    threads: 4 if len(STUDY.names) > 50 else 1
    resources:
        mem_mb=4000,
    params:
        names=STUDY.names,
        measures=STUDY.complementarity.plain(),
    message:
        "complementary knowledge of all pairs on the {wildcards.split} images"
    shell:
        "kt complementarity --split {wildcards.split} --out={output:q} --threads {threads} --log={log:q}"


rule round:
    input:
        again(LAYOUT.root / "rounds" / "{number}.parquet"),
        # Of the rounds before; what they were chosen from is thus older too.
        lambda wildcards: transfers_of_round(int(wildcards.number) - 1),
        lambda wildcards: [LAYOUT.round(n) for n in range(int(wildcards.number))],
        lambda wildcards: (
            [LAYOUT.complementarity("validation"), LAYOUT.table("zoo")]
            if int(wildcards.number)
            else []
        ),
    output:
        LAYOUT.root / "rounds" / "{number}.parquet",
    log:
        LOGS / "rounds" / "{number}.log",
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/kt.yaml"
    params:
        names=STUDY.names,
        rule=STUDY.pairs.plain(),
    message:
        "choose the pairs of round {wildcards.number}"
    shell:
        "kt round --round {wildcards.number} --out={output:q} --log={log:q}"


rule pairs:
    input:
        again(LAYOUT.table("pairs")),
        rounds=(
            [LAYOUT.round(n) for n in range(STUDY.pairs.rounds + 1)] if ROUNDS else []
        ),
        scores=(
            LAYOUT.complementarity("validation") if NEEDS_SCORES and not ROUNDS else []
        ),
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
            f"--scores={shlex.quote(input.scores)}" if input.scores else ""
        ),
        models=lambda wildcards, input: (
            f"--models={shlex.quote(input.models)}" if input.models else ""
        ),
    message:
        "choose the pairs"
    shell:
        "kt pairs {params.scores} {params.models} --out={output:q} --log={log:q}"
