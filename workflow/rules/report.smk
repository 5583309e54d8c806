FIGURES = [
    "flips_vs_accuracy",
    "flips_heatmap",
    "delta_by_method",
    "delta_vs_accuracy",
    "flips_by_class",
    *DETAILS,
]
TABLES = [
    LAYOUT.table(name)
    for name in ("zoo", "complementarity", "pairs", "transfers", "methods", *DETAILS)
]


rule analysis:
    input:
        [LAYOUT.table(name) for name in ("zoo", "complementarity", "transfers")],
    output:
        LAYOUT.analysis / "summary.md",
        [
            LAYOUT.analysis / f"{name}.{kind}"
            for name in ANALYSIS
            for kind in ("parquet", "csv")
        ],
    log:
        LOGS / "analysis.log",
    conda:
        "../../envs/kt.yaml"
    params:
        analysis=STUDY.analysis.plain(),
    message:
        "analysis"
    shell:
        "kt analyse --log {log}"


rule figures:
    input:
        TABLES,
    output:
        [
            LAYOUT.figures / f"{name}.{kind}"
            for name in FIGURES
            for kind in ("png", "pdf", "csv")
        ],
    log:
        LOGS / "figures.log",
    conda:
        "../../envs/kt.yaml"
    message:
        "figures"
    shell:
        "kt figures --log {log}"


rule report:
    input:
        TABLES,
        [LAYOUT.figures / f"{name}.png" for name in FIGURES],
        LAYOUT.analysis / "summary.md",
    output:
        LAYOUT.report,
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
        "kt report --out {output} --log {log}"
