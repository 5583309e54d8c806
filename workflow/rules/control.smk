# A study of policies: games, members, their experiments, tables, figures, report.
rule data:
    input:
        again(LAYOUT.games),
    output:
        LAYOUT.games,
    log:
        LOGS / "data.log",
    conda:
        "../../envs/kt.yaml"
    params:
        # Networks and experiments are checked again by the jobs that use them, when they change.
        games=[
            STUDY.zoo.modules,
            {at: game.plain() for at, game in STUDY.games().items()},
        ],
    message:
        "make every game and every network once"
    shell:
        "kt data --threads {threads} --log={log:q}"


rule member:
    input:
        again(LAYOUT.member("{model}")),
        LAYOUT.games,
        lambda wildcards: member(wildcards).checkpoint or [],
    output:
        # Weights that are still those of the recipe are kept, so they must still be there when the job starts.
        update(LAYOUT.weights("{model}")),
        update(LAYOUT.member("{model}")),
        LAYOUT.returns("{model}"),
    log:
        LOGS / "member/{model}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=memory(1),
        runtime=LONGEST,
    params:
        recipe=lambda wildcards: [member(wildcards).plain(), STUDY.zoo.modules],
        episodes=STUDY.data.plain(),
    message:
        "weights and episodes of {wildcards.model}"
    shell:
        "kt member --model {wildcards.model} --threads {resources.cpus_per_task} --log={log:q}"


rule zoo:
    input:
        again(LAYOUT.table("zoo")),
        [LAYOUT.returns(name) for name in STUDY.members],
    output:
        LAYOUT.table("zoo"),
    log:
        LOGS / "zoo.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=STUDY.members,
    message:
        "table of policies"
    shell:
        "kt zoo --out={output:q} --log={log:q}"


rule flow:
    input:
        again(LAYOUT.experiment("flow", "{experiment}")),
        teachers_weights,
        games=LAYOUT.games,
    output:
        tables_of("{experiment}"),
    log:
        LOGS / "flow" / "{experiment}.log",
    conda:
        "../../envs/kt.yaml"
    threads: PROCESSES
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=memory(PROCESSES),
        runtime=minutes_of_experiment,
    params:
        plan=lambda wildcards: [
            *kt_units.recipe(STUDY, experiment_of(wildcards)),
            STUDY.transfer.export,
        ],
    message:
        "flow {wildcards.experiment}"
    shell:
        "kt flow --experiment {wildcards.experiment}"
        " --threads {resources.cpus_per_task} --log={log:q}"


rule tables:
    input:
        again(LAYOUT.table("transfers")),
        [tables_of(name) for name in STUDY.flow],
        LAYOUT.table("zoo"),
    output:
        [LAYOUT.table(name) for name in ("transfers", *DETAILS)],
        [LAYOUT.tables / f"{name}.csv" for name in ("zoo", "transfers", *DETAILS)],
    log:
        LOGS / "tables.log",
    conda:
        "../../envs/kt.yaml"
    params:
        experiments=list(STUDY.flow),
    message:
        "final tables"
    shell:
        "kt tables --log={log:q}"


rule figures:
    input:
        TABLES,
    output:
        [in_report(name) for name in FIGURES],
        [
            LAYOUT.figures / f"{name}.{kind}"
            for name in FIGURES
            for kind in ("pdf", "csv")
        ],
    log:
        LOGS / "figures.log",
    conda:
        "../../envs/kt.yaml"
    message:
        "figures"
    shell:
        "kt figures --log={log:q}"


rule report:
    input:
        TABLES,
        [LAYOUT.figures / f"{name}.png" for name in FIGURES],
    output:
        report(
            str(LAYOUT.report),
            caption="../report/page.rst",
            category="The answer",
            labels={"page": "report"},
        ),
    log:
        LOGS / "report.log",
    conda:
        "../../envs/kt.yaml"
    params:
        title=STUDY.title,
    message:
        "report"
    shell:
        "kt report --out={output:q} --log={log:q}"


localrules:
    all,
    zoo,
    tables,
    figures,
    report,
