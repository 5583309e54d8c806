# The detail tables of the kinds of experiments that the study has.
DETAILS = sorted({experiment.table for _, _, experiment in STUDY.each_experiment()})


def experiment_tables(rule, name, experiment=None):
    """What the job of an experiment writes."""
    return [LAYOUT.experiment(rule, name), LAYOUT.details(rule, name)]


def experiment_models(rule):
    """Predictions and weights of the teachers of the experiment that a job is about."""

    def files(wildcards):
        names = STUDY.experiments[rule][wildcards.experiment].teachers
        return [
            path(name)
            for path in (LAYOUT.weights, LAYOUT.predictions)
            for name in names
        ]

    return files


def experiment_plan(rule):
    """All in the configuration that determines an experiment; only a change of these runs it again."""

    def plan(wildcards):
        experiment = STUDY.experiments[rule][wildcards.experiment]
        classes = [
            STUDY.zoo.models[name].plain()["classes"] for name in experiment.teachers
        ]
        return [
            experiment.plain(),
            classes,
            STUDY.student_input(experiment).plain(),
            STUDY.transfer.export,
        ]

    return plan


rule amalgamate:
    input:
        experiment_models("amalgamate"),
    output:
        experiment_tables("amalgamate", "{experiment}"),
    log:
        LOGS / "amalgamate/{experiment}.log",
    conda:
        "../../envs/kt.yaml"
    threads: 1
    resources:
        cpus_per_task=lambda wildcards, threads: threads,
        mem_mb=lambda wildcards, attempt: PLAIN_MB * 2 ** (attempt - 1),
        runtime=LONGEST,
    params:
        plan=experiment_plan("amalgamate"),
    message:
        "{rule} {wildcards.experiment}"
    shell:
        "kt {rule} --experiment {wildcards.experiment}"
        " --threads {resources.cpus_per_task} --log {log}"


use rule amalgamate as flow with:
    input:
        experiment_models("flow"),
    output:
        experiment_tables("flow", "{experiment}"),
    log:
        LOGS / "flow/{experiment}.log",
    params:
        plan=experiment_plan("flow"),
