from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/study.rst"


include: "workflow/rules/study.smk"


if STUDY.plays:

    include: "workflow/rules/policies.smk"
    include: "workflow/rules/control.smk"

else:

    include: "workflow/rules/common.smk"
    include: "workflow/rules/resources.smk"
    include: "workflow/rules/data.smk"
    include: "workflow/rules/zoo.smk"
    include: "workflow/rules/score.smk"
    include: "workflow/rules/experiments.smk"
    include: "workflow/rules/transfer.smk"
    include: "workflow/rules/report.smk"


rule all:
    input:
        LAYOUT.report,
        [] if STUDY.plays else LAYOUT.explore,


check_profile()
ready_to_plan()
