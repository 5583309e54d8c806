# Figures of experiments are drawn where the study has such.
FIGURES = figures_of(DETAILS, OPTIONAL, plays=False)
AT_ONCE = [name for name in FIGURES if name not in OF_ANALYSIS]
LATER = [name for name in FIGURES if name in OF_ANALYSIS]
TABLES = [
    LAYOUT.table(name)
    for name in ("zoo", "complementarity", "pairs", "transfers", "methods", *DETAILS)
]


# The analysis's files that figures and report are made from.
ANALYSED = [LAYOUT.analysis / f"{name}.parquet" for name in ANALYSIS] + [
    LAYOUT.analysis / "summary.md"
]


rule analysis:
    input:
        [LAYOUT.table(name) for name in ("zoo", "complementarity", "transfers")],
        [LAYOUT.table("pairs")] if ROUNDS else [],
    output:
        LAYOUT.analysis / "summary.md",
        [
            LAYOUT.analysis / f"{name}.{kind}"
            for name in ANALYSIS
            for kind in ("parquet", "csv")
        ],
    log:
        LOGS / "analysis.log",
    # Others wait for it; the page to explore and the figures of the tables do not.
    priority: 1
    conda:
        "../../envs/kt.yaml"
    params:
        analysis=STUDY.analysis.plain(),
    message:
        "analysis"
    shell:
        "kt analyse --log={log:q}"


rule figures:
    input:
        TABLES,
    output:
        files_of_figures(AT_ONCE),
    log:
        LOGS / "figures.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=AT_ONCE,
        tables=LAYOUT.tables,
        out=LAYOUT.figures,
    message:
        "figures of the tables"
    shell:
        "kt figures {params.names} --tables={params.tables:q} --out={params.out:q} --log={log:q}"


rule figures_of_analysis:
    input:
        TABLES,
        ANALYSED,
    output:
        files_of_figures(LATER),
    log:
        LOGS / "figures_of_analysis.log",
    conda:
        "../../envs/kt.yaml"
    params:
        names=LATER,
    message:
        "figures of the analysis"
    shell:
        "kt figures {params.names} --log={log:q}"


rule report:
    input:
        TABLES,
        [LAYOUT.figures / f"{name}.png" for name in FIGURES],
        ANALYSED,
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
        analysis=STUDY.analysis.plain(),
    message:
        "report"
    shell:
        "kt report --out={output:q} --log={log:q}"


rule explore:
    input:
        TABLES,
    output:
        report(
            str(LAYOUT.explore),
            caption="../report/explore.rst",
            category="The answer",
            labels={"page": "explore"},
        ),
    log:
        LOGS / "explore.log",
    conda:
        "../../envs/kt.yaml"
    params:
        title=STUDY.title,
        analysis=STUDY.analysis.plain(),
    message:
        "explore"
    shell:
        "kt explore --out={output:q} --log={log:q}"


# Shorter than a cluster job takes to start.
localrules:
    all,
    round,
    pairs,
    choose,
    zoo,
    tables,
    figures,
    figures_of_analysis,
    report,
    explore,
