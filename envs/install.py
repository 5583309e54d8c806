"""Install kt, its executor and the pinned packages; used by `make`, conda, uv and CI.

    python3 envs/install.py .venv    # makes a virtual environment and installs into it
    python envs/install.py           # installs into the environment of this Python, e.g. conda's or uv's

`requirements.lock` contains all dependencies, so nothing is resolved (`--no-deps`): pips before 23.3 would look at the
newest release of a requirement with extras, and refuse it because the lock has no hash of it. Packages without a wheel
are built with the lock's setuptools (`--no-build-isolation`), not with the newest. `pip check` verifies the result.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCK = os.path.join(ROOT, "envs", "requirements.lock")
PLUGIN = os.path.join(ROOT, "plugins", "snakemake-executor-plugin-submitit")
OLDEST, NEWEST = (3, 11), (3, 14)


def check_python():
    """Exit with one line if the lock has no packages for this Python; old Pythons must get this far, too."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest, this = (".".join(map(str, each[:2])) for each in (OLDEST, NEWEST, sys.version_info))
        sys.exit(
            f"kt is for Python {oldest} to {newest}, this is {this}: name another, as `make run PYTHON=python3.12`"
        )


def installer():
    """Return the start of a pip command for this environment: its own pip or, if it has none, uv's."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"], []
    if shutil.which("uv"):
        return ["uv", "pip"], ["--python", sys.executable]
    return sys.exit(f"{sys.prefix} has no pip, and there is no uv on the PATH to install with")


def install():
    """Install everything into the environment of the running Python."""
    program, where = installer()
    # PIP_USE_PEP517: for packages without a pyproject.toml, with pips before 25.3
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USE_PEP517="1")

    def pip(*arguments):
        status = subprocess.call([*program, arguments[0], *where, *arguments[1:]], env=environment)
        if status:
            sys.exit(status)

    pinned = ["install", "--no-deps", "--no-build-isolation", "--require-hashes", "--requirement"]
    with open(LOCK, encoding="utf-8") as file, tempfile.TemporaryDirectory() as folder:
        backend = os.path.join(folder, "setuptools.lock")
        with open(backend, "w", encoding="utf-8") as first:
            first.write(re.search(r"^setuptools==(.+\n)+?(?=\S|\Z)", file.read(), re.MULTILINE).group())
        pip(*pinned, backend)
    pip(*pinned, LOCK)
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "-e", ROOT, "-e", PLUGIN)
    pip("check")


def main():
    """Install into the virtual environment given as argument, or into the environment of the running Python."""
    check_python()
    if len(sys.argv) == 1:
        return install()
    folder = sys.argv[1]
    made = subprocess.call([sys.executable, "-m", "venv", folder])
    return made or subprocess.call([os.path.join(folder, "bin", "python"), os.path.abspath(__file__)])


if __name__ == "__main__":
    sys.exit(main())
