"""The set-up on a day when packages have newer releases than the lock, with old and new pips and with uv.

The index is a folder with tiny packages. Of each that the lock names it also has a newer release, which must not matter
and would break what it touches.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import inspect
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = "plugins/snakemake-executor-plugin-submitit"

# A build backend of a few lines; `write_wheel` becomes the source of the function below.
BACKEND = """
import base64, hashlib, io, pathlib, re, tarfile, zipfile

{write_wheel}

def _build(folder, files):
    text = pathlib.Path("pyproject.toml" if pathlib.Path("pyproject.toml").exists() else "setup.py").read_text()
    name, = re.findall('name *= *"(.+?)"', text)
    requires = re.findall("^  *.(.+).,$", text, re.MULTILINE)
    return write_wheel(pathlib.Path(folder), name, "1.0", requires=requires, files=files).name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    return _build(folder, {{}})

def build_editable(folder, config_settings=None, metadata_directory=None):
    return _build(folder, {{}})

class _Legacy:
    build_wheel = staticmethod(build_wheel)

__legacy__ = _Legacy()
"""


def write_wheel(folder, name, version, requires=(), extras=(), files=None):
    """Write a wheel of a pure Python package and return its path."""
    dist = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
    contents = {
        **(files or {}),
        f"{dist}.dist-info/METADATA": "\n".join(metadata) + "\n",
        f"{dist}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(folder / f"{dist}-py3-none-any.whl", "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text.encode())}\n"
        archive.writestr(f"{dist}.dist-info/RECORD", f"{record}{dist}.dist-info/RECORD,,\n")
    return folder / f"{dist}-py3-none-any.whl"


def write_source(folder: Path, name: str, version: str) -> Path:
    """Write a source archive as before pyproject.toml."""
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in {"setup.py": f'name="{name}"\n', "PKG-INFO": f"Name: {name}\nVersion: {version}\n"}.items():
            member = tarfile.TarInfo(f"{name}-{version}/{file}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package index: `top` needs `extra[more]`, which needs `deep`; `old` has no wheel; all have a newer release."""
    folder = tmp_path_factory.mktemp("index")

    def add(name: str, path: Path) -> None:
        (folder / name).mkdir(exist_ok=True)
        path.rename(folder / name / path.name)

    backend = BACKEND.format(write_wheel=inspect.getsource(write_wheel))
    add("top", write_wheel(folder, "top", "1.0", ["extra[more]>=1"]))
    add("top", write_wheel(folder, "top", "2.0", ["extra[more]>=2"]))
    for version in ("1.0", "2.0"):
        add("extra", write_wheel(folder, "extra", version, ['deep; extra == "more"'], ["more"]))
        add("deep", write_wheel(folder, "deep", version))
        add("old", write_source(folder, "old", version))
    add("setuptools", write_wheel(folder, "setuptools", "100.0", files={
        "setuptools/__init__.py": "", "setuptools/build_meta.py": backend,
    }))  # fmt: skip
    add("setuptools", write_wheel(folder, "setuptools", "101.0", files={"setuptools/__init__.py": "1 / 0\n"}))
    for package in [path for path in folder.iterdir() if path.is_dir()]:
        links = "".join(f'<a href="{file.name}">{file.name}</a>\n' for file in sorted(package.iterdir()))
        (package / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    return folder


def pin(index: Path, name: str, version: str, extra: str = "") -> str:
    """A line of the lock, as uv writes it."""
    (file,) = (path for path in (index / name).iterdir() if f"-{version}" in path.name)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{name}{extra}=={version} \\\n    --hash=sha256:{digest}\n    # via kt (pyproject.toml)\n"


@pytest.fixture
def checkout(index: Path, tmp_path: Path) -> Path:
    """The project's Makefile and recipe, with two empty packages and a lock of the older releases."""
    folder = tmp_path / "a checkout"
    (folder / "envs").mkdir(parents=True)
    (folder / PLUGIN).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "envs/install.py", folder / "envs")
    lock = pin(index, "deep", "1.0") + pin(index, "extra", "1.0", "[more]") + pin(index, "old", "1.0")
    lock += pin(index, "setuptools", "100.0") + pin(index, "top", "1.0")
    (folder / "envs/requirements.lock").write_text("# This file was autogenerated\n" + lock)
    build = '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n\n[project]\n'
    needs = 'dependencies = [\n  "top",\n  "old",\n]\n'
    (folder / "pyproject.toml").write_text(f'{build}name = "kt"\nversion = "1.0"\n{needs}')
    (folder / PLUGIN / "pyproject.toml").write_text(f'{build}name = "snakemake-executor-plugin"\nversion = "1.0"\n')
    return folder


@pytest.fixture
def environment(index: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a user who knows no other index."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    ours = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index.as_uri(), "PIP_NO_CACHE_DIR": "1"}
    uvs = {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": index.as_uri(), "UV_CACHE_DIR": str(tmp_path / "uv-cache")}
    return {**kept, **ours, **uvs}


@pytest.fixture(scope="module")
def pips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pips are kept that have been downloaded."""
    return tmp_path_factory.mktemp("pips")


def venv_with_pip(folder: Path, version: str, pips: Path) -> Path:
    """A Python with a certain pip, the newest where ``version`` is empty."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(pips / f"pip{version}")]
    command += ["--disable-pip-version-check", f"pip=={version}" if version else "pip"]
    got = subprocess.run(command, text=True, capture_output=True)
    if got.returncode:
        pytest.skip(f"no pip {version or '(newest)'} to be had: {got.stderr.strip().splitlines()[-1]}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (wheel,) = (pips / f"pip{version}").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(next(folder.glob("lib/python*/site-packages")))
    return folder / "bin/python"


def installed(python: Path) -> set[str]:
    """Names and versions of what an environment has."""
    code = "from importlib.metadata import distributions as all\nfor one in all(): print(one.name, one.version)"
    listed = subprocess.run([python, "-c", code], text=True, capture_output=True, check=True)
    return {line for line in listed.stdout.splitlines() if not line.startswith("pip ")}


PINNED = {"kt 1.0", "snakemake-executor-plugin 1.0", "top 1.0", "extra 1.0", "deep 1.0", "old 1.0", "setuptools 100.0"}


# that pip comes with Python 3.11, and does not run on later ones
oldest = pytest.mark.skipif(sys.version_info >= (3, 12), reason="pip 23.0 does not run on this Python")


@pytest.mark.parametrize(
    "version", [pytest.param("23.0", marks=oldest), "24.0", ""], ids=["pip-23.0", "pip-24.0", "newest-pip"]
)
def test_every_pip_installs_the_lock_as_it_is(
    checkout: Path, environment: dict[str, str], pips: Path, tmp_path: Path, version: str
) -> None:
    python = venv_with_pip(tmp_path / "venv", version, pips)
    done = subprocess.run([python, checkout / "envs/install.py"], env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(python) == PINNED
    assert "No broken requirements found." in done.stdout


@oldest
def test_the_oldest_pip_would_refuse_to_resolve_the_same_lock(
    checkout: Path, environment: dict[str, str], pips: Path, tmp_path: Path, index: Path
) -> None:
    python = venv_with_pip(tmp_path / "venv", "23.0", pips)
    lock = checkout / "envs/requirements.lock"
    text = lock.read_text().replace("extra[more]", "extra")  # as the lock once was
    lock.write_text(text.replace(pin(index, "old", "1.0"), ""))
    install = [python, "-m", "pip", "install", "--require-hashes", "-r", lock]
    done = subprocess.run(install, env=environment, text=True, capture_output=True)
    assert done.returncode == 1
    assert "In --require-hashes mode, all requirements must have their versions pinned with ==." in done.stderr
    assert "extra[more]>=1" in done.stderr


def test_make_uses_the_same_recipe(checkout: Path, environment: dict[str, str]) -> None:
    make = ["make", ".venv/.ready", f"PYTHON={sys.executable}"]
    done = subprocess.run(make, cwd=checkout, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout / ".venv/bin/python") == PINNED
    assert "up to date" in subprocess.run(make, cwd=checkout, env=environment, text=True, capture_output=True).stdout


def test_uv_installs_the_same_pins(checkout: Path, environment: dict[str, str]) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here")
    environment["PATH"] = os.pathsep.join([str(Path(uv).parent), environment["PATH"]])
    made = [uv, "venv", "--quiet", "--python", sys.executable, ".venv"]
    subprocess.run(made, cwd=checkout, env=environment, check=True)
    command = [".venv/bin/python", "envs/install.py"]
    done = subprocess.run(command, cwd=checkout, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout / ".venv/bin/python") == PINNED


def test_a_lock_that_lacks_something_is_found_out(
    checkout: Path, environment: dict[str, str], pips: Path, tmp_path: Path, index: Path
) -> None:
    lock = checkout / "envs/requirements.lock"
    lock.write_text(lock.read_text().replace(pin(index, "top", "1.0"), ""))
    python = venv_with_pip(tmp_path / "venv", "24.0", pips)
    done = subprocess.run([python, checkout / "envs/install.py"], env=environment, text=True, capture_output=True)
    assert done.returncode == 1
    assert "kt 1.0 requires top, which is not installed." in done.stdout


@pytest.mark.parametrize("version", [(3, 10, 2), (3, 15, 0)])
def test_a_python_without_pinned_packages_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: tuple[int, int, int]
) -> None:
    spec = importlib.util.spec_from_file_location("install", ROOT / "envs/install.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "argv", ["install.py", str(tmp_path / "venv")])
    with pytest.raises(SystemExit, match=rf"^kt is for Python 3.11 to 3.14, this is 3.{version[1]}: name another"):
        recipe.main()
    assert not (tmp_path / "venv").exists()


def test_the_conda_environment_leaves_the_packages_to_the_recipe() -> None:
    text = (ROOT / "envs/kt.yaml").read_text("utf-8")
    assert "- pip:" not in text
    for document in (text, *((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/slurm.md"))):
        assert "envs/install.py" in document
        assert "pip install" not in document
