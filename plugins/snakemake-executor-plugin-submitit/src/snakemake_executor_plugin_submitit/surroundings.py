"""SLURM's environment variables, which must not change requests unnoticed."""

from __future__ import annotations

from collections.abc import MutableMapping

# Resources that a user or a site sets for all jobs; defaults of rules that set none.
_DEFAULTS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
}
# The cluster of these commands, and the connection to it.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_DEBUG_FLAGS")
# With another cluster, some commands would not find its jobs.
_CLUSTERS = ("SBATCH_CLUSTERS", "SLURM_CLUSTERS")


def clear(environ: MutableMapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Remove the variables that ``sbatch`` and ``srun`` read in addition to their flags, and that may override them.

    They come from the user's shell, or from the job in which Snakemake itself runs.

    Returns:
        The resources that they set, and one message for each kind of ignored variables.

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
            f"{', '.join(others)} would change the resources of jobs, and {'is' if len(others) == 1 else 'are'} not "
            "passed on: use resources, or --submitit-sbatch"
        )
    return defaults, told
