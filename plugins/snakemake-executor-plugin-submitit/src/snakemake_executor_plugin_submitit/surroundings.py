"""What the environment says of SLURM jobs; none of it may change, unseen, what is asked for here."""

from __future__ import annotations

from collections.abc import MutableMapping

# Resources that a user or a site sets for all jobs; they count where a rule names none.
_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
}
# Which cluster's commands these are, and how to talk to it.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_DEBUG_FLAGS")
# Who asks another cluster with one command may not be answered about its jobs by the next.
_CLUSTERS = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")


def clear(environ: MutableMapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Take the variables out that ``sbatch`` and ``srun`` read beside their flags, and override these with.

    They come from the user's shell, or from the job in which Snakemake itself runs.

    Returns:
        The resources that they name, and one line for each kind of variable that no longer counts.

    Raises:
        ValueError: They name other clusters.
    """
    if named := next((name for name in _CLUSTERS if environ.get(name)), None):
        raise ValueError(
            f"{named}={environ[named]} is set, but jobs go to one cluster, that of this machine's commands: "
            f"unset it, and run Snakemake on a login node of {environ[named]}"
        )
    defaults = {name: environ[key] for key, name in _DEFAULTS.items() if environ.get(key)}
    inside = "SLURM_JOB_ID" in environ
    found = [key for key in environ if key.startswith(("SBATCH_", "SLURM_", "SRUN_")) and key not in _KEPT]
    for key in found:
        del environ[key]
    told = ["running inside a SLURM job; its SLURM_ variables are not passed on"] if inside else []
    others = sorted(key for key in found if key not in _DEFAULTS and (key.startswith("SBATCH_") or not inside))
    if others:
        told.append(
            f"{', '.join(others)} would change what jobs ask for, and {'is' if len(others) == 1 else 'are'} not passed "
            "on: use resources, or --submitit-sbatch"
        )
    return defaults, told
