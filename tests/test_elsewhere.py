"""A finished study has nothing to do from wherever it is called, also moved; a change is seen from anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import warm
import yaml
from test_pipeline import ROOT, STUDY

COMMAND = ["-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
COMMAND += ["--workflow-profile", str(ROOT / "profiles/default")]
TARGET = "../out/data/meta.json"


def snakemake(study: Path, folder: Path, *more: str) -> str:
    """What Snakemake prints when it is called for a study from a folder."""
    command = [warm.python(), *COMMAND, "--configfile", str(study), *more]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose results lie beside its own folder, called from elsewhere; its images are decoded."""
    place = tmp_path_factory.mktemp("place")
    (place / "study").mkdir()
    (place / "far away").mkdir()
    (place / "study/s.yaml").write_text(yaml.safe_dump({**STUDY, "results": "../out"}))
    snakemake(place / "study/s.yaml", place / "far away", "--", TARGET)
    return place


def test_results_and_records_lie_where_the_configuration_says(place):
    assert (place / "out/data/meta.json").exists()
    assert (place / "study/.snakemake").is_dir()
    left = [path.relative_to(place / "far away") for path in (place / "far away").rglob("*") if path.is_file()]
    assert {str(path.parent) for path in left} <= {".snakemake/log"}  # Snakemake opens it before it reads anything


def test_it_is_done_from_anywhere_also_through_a_link_and_moved(place, tmp_path):
    (tmp_path / "link").symlink_to(place / "study")
    shutil.copytree(place, tmp_path / "moved", symlinks=True)
    for study, folder in [
        (place / "study/s.yaml", place / "study"),
        (place / "study/s.yaml", tmp_path),
        (Path("link/s.yaml"), tmp_path),
        (tmp_path / "moved/study/s.yaml", tmp_path),
    ]:
        assert "Nothing to be done" in snakemake(study, folder, "-n", "--", TARGET)


def test_a_change_is_seen_from_anywhere_and_after_a_move(place, tmp_path):
    shutil.copytree(place, tmp_path / "moved")
    study = tmp_path / "moved/study/s.yaml"
    study.write_text(study.read_text().replace("seed: 0\n", "seed: 1\n", 1))
    assert "decode and split the images" in snakemake(study, tmp_path, "-n", "--", TARGET)


def test_results_may_lie_in_a_folder_of_any_name(tmp_path):
    name = '- of"it\'s" $(touch y); `touch x` & ~'
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**STUDY, "results": name}))
    pairs = f"{name}/tables/pairs.parquet"
    snakemake(tmp_path / "s.yaml", tmp_path, "--", f"{name}/data/meta.json", pairs)
    assert "Nothing to be done" in snakemake(tmp_path / "s.yaml", tmp_path, "-n", "--", pairs)
    assert (tmp_path / name / "logs/pairs.log").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {name, "s.yaml", ".snakemake"}


def test_braces_in_the_name_of_the_results_are_refused(tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**STUDY, "results": "a{model}"}))
    command = [warm.python(), *COMMAND, "-n", "--configfile", "s.yaml"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert "results: a{model}: '{' has a meaning for Snakemake; choose another name" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_from_elsewhere_tells_the_truth(place, tmp_path):
    command = [warm.python(), "-m", "kt", "status", "--configfile", str(place / "study/s.yaml")]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert re.search(r"^data +1 +0 +1$", done.stdout, re.MULTILINE)


def test_another_directory_is_refused_in_one_line(place, tmp_path):
    command = [warm.python(), *COMMAND, "-n", "--configfile", str(place / "study/s.yaml"), "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert f"--directory: {tmp_path}: leave it out; paths of a study are relative to its configuration's" in done.stderr
    assert "Traceback" not in done.stderr
