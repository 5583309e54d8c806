import math

from kt import costs as guess
from kt.transfer.unit import Plans, seeds_of


def on_gpu(rule):
    """Whether a rule's jobs will find a GPU, as far as that is known before they run."""
    asked = workflow.resource_settings.overwrite_resources.get(rule, {})
    return (
        STUDY.device.startswith("cuda") or "gpus" in asked or site("gpus", 0) > 0
    ) and STUDY.device != "cpu"


# Values of a model's answer to an image, where it is a map.
VALUES = {name: kt_units.answer_values(STUDY, LAYOUT, name) for name in STUDY.members}

# What jobs may ask for where nothing is known of their model, and the longest time that they ask for.
PLAIN_MB, LONGEST = site("mem_mb", 2000), site("runtime", 1440)
READ = ("transfer", "validation", "test")

# Trainings that a job runs at once, each in a process with a core and memory of its own.
PROCESSES = STUDY.transfer.processes


def images_of(split):
    """Images of a split; infinitely many where only decoding the data set will tell."""
    return SURVEY.images.get(split, math.inf)


def in_epoch(split):
    """Images of a split that an epoch of a training shows: all, but of videos one frame each."""
    return SURVEY.shown.get(split, math.inf)


def shown(split):
    """Images of a split as models see them: every view of an image is one."""
    return STUDY.views(split) * images_of(split)


def memory(rule, model, splits, batch_size, attempt, trains=True):
    """Memory of a job for one model, from the model's size where it is known; more at every further attempt."""
    facts = SURVEY.models.get(model, {})
    if not (facts.get("params") and facts.get("macs")):
        return PLAIN_MB * 2 ** (attempt - 1)
    spec = STUDY.zoo.input_of(model)
    prepared = sum(
        guess.prepared_mb(shown(split), len(spec.mean), spec.side)
        for split in splits
        if not spec.clip  # clips are prepared on demand
    )
    answers = guess.answers_mb(
        VALUES[model], batch_size if trains else 0, gpu=on_gpu(rule)
    )
    return guess.memory_mb(
        facts["params"],
        facts["macs"],
        batch_size,
        prepared + answers,
        train=trains,
        gpu=on_gpu(rule),
        attempt=attempt,
    )


def minutes(model, images, attempt):
    """Time limit of a job that trains a model on so many images; more at every further attempt."""
    pace = SURVEY.pace.of(model)
    return (
        guess.minutes(images * pace[0], LONGEST, attempt)
        if pace and images < math.inf
        else LONGEST
    )


def resources_of_student(name, images):
    """Resources of a rule whose jobs train one student; `images` says how many images they see."""
    return {
        "cpus_per_task": lambda wildcards, threads: threads,
        "mem_mb": lambda wildcards, attempt: PROCESSES
        * memory(
            name,
            wildcards.student,
            READ,
            STUDY.transfer.training.batch_size,
            attempt,
        ),
        "runtime": lambda wildcards, attempt: minutes(
            wildcards.student, images(wildcards), attempt
        ),
    }


def experiment_memory(rule):
    """Memory of the job of an experiment, from what its trainings take, where that was found out."""

    def memory(wildcards, attempt):
        experiment = STUDY.experiments[rule][wildcards.experiment]
        path = LAYOUT.needs(rule, wildcards.experiment)
        found = guess.read_needs(path, kt_units.size_hash(STUDY, experiment))
        return PROCESSES * max(
            [
                guess.experiment_mb(
                    needs.total(0),
                    needs.image,
                    needs.batch,
                    gpu=on_gpu(rule),
                    attempt=attempt,
                )
                for needs in found.values()
            ],
            default=PLAIN_MB * 2 ** (attempt - 1),
        )

    return memory


def experiment_minutes(rule):
    """Time limit of the job of an experiment, from the images that its missing trainings see."""

    def limit(wildcards, attempt):
        at = f"{rule}.{wildcards.experiment}"
        known = SURVEY.shown.get("transfer")
        return minutes(at, SURVEY.work[at] if known else math.inf, attempt)

    return limit


def trained(wildcards):
    """How the pipeline trains or fine-tunes a member; nothing where its weights are given."""
    return member(wildcards).train or member(wildcards).finetune


def member_memory(wildcards, attempt):
    """Memory of the job that makes a member's weights, and then its predictions."""
    name, recipe = wildcards.model, trained(wildcards)
    batch_size = recipe.batch_size if recipe else 1
    return max(
        memory("member", name, ["zoo"], batch_size, attempt),
        memory("member", name, READ, guess.EVALUATED, attempt, trains=False),
    )


def member_minutes(wildcards, attempt):
    """Its time limit, from the images that its training sees, where it has one, and those that it predicts."""
    recipe, images = trained(wildcards), in_epoch("zoo")
    seen = recipe.epochs * (recipe.images or images) if recipe else 0
    # a forward pass is a third of a step of training
    predicted = sum(shown(split) for split in READ) / 3
    return minutes(wildcards.model, seen + predicted, attempt)


def seen(methods, teachers):
    """Images that a unit of each method sees with every seed, each as often as it is seen."""
    plan = STUDY.transfer
    return sum(
        method.budget(teachers)
        * method.trained(plan.training).epochs
        * len(seeds_of(method, plan.seeds))
        * in_epoch("transfer")
        for method in methods
        if method.trains
    )


QUOTAS = (
    kt_pairs.quotas({name: len(found) for name, found in TEACHERS.items()}, STUDY.pairs)
    if ROUNDS
    else {}
)


def training_images(wildcards):
    """Images that a job's missing trainings see, each as often as it is seen."""
    methods = STUDY.transfer.methods.chosen().values()
    everyone, size = TEACHERS[wildcards.student], STUDY.transfer.pairs_per_job
    mine = (
        min(len(everyone), size + size // 4)
        if NEEDS_SCORES
        else len(kt_pairs.part(everyone, int(wildcards.chunk), size))
    )
    if ROUNDS:
        of_student = QUOTAS[wildcards.student]
        number = ROUNDS[wildcards.student][int(wildcards.chunk)]
        # With a budget of hours nobody knows the number before the round.
        mine = of_student[number] if number < len(of_student) else math.inf
    images = mine * seen([m for m in methods if not m.control], 1)
    if wildcards.chunk == "0":
        images += seen([m for m in methods if m.control], 0)
    if ROUNDS:  # trainings of rounds to come are not known to be missing yet
        return images
    return min(images, SURVEY.work.get(wildcards.student, images))


def trial_images(wildcards):
    """Images that the trainings of a student's candidates see."""
    units = STUDY.transfer.trials(
        wildcards.student, TRIALS[wildcards.student], Plans("", STUDY.transfer.training)
    )
    methods = [unit.method for unit in units]
    training = STUDY.transfer.training
    epochs = sum(m.budget(not m.control) * m.trained(training).epochs for m in methods)
    return epochs * in_epoch("transfer")


def group_images(wildcards):
    """Images that the trainings of a student's groups see; methods that train one after another see more."""
    size = kt_groups.largest(STUDY.groups.choose)
    return GROUPS[wildcards.student] * seen(
        STUDY.groups.methods.chosen().values(), size
    )
