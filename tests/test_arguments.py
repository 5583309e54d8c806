"""Mistakes on the command line: one line each, with what is allowed and the nearest name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kt.cli import main

LONG = "9" * 5000


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command prints."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "kt: unknown command 'statsu'; allowed: data, .*; did you mean 'status'"),
        ([LONG], r"kt: unknown command '9+ … \(5,002 characters\) … 9+'; allowed: data, "),
        (["config", "chekc"], "kt config: unknown action 'chekc'; allowed: check, schema; did you mean 'check'"),
        (["config"], "kt config: the following arguments are required: action"),
        (["transfer", "--student", "x", "--chunk", "-1"], "--chunk: '-1': allowed is a whole number from 0 to "),
        (["transfer", "--student", "x", "--chunk", LONG], r"--chunk: '9+ … \(5,002 characters\) … 9+': allowed is"),
        (["transfer", "--student", "x", "--threads", "0"], "--threads: '0': allowed is a whole number from 1 to"),
        (["config", "check", f"--{LONG}"], r"unrecognized arguments: -*9+ … \(5,002 characters\) … 9+"),
        (["zoo", "--tera-macs", "nan"], "--tera-macs: 'nan': allowed is a number from 0.001 to"),
        (["analyse", "--bootstrap", "19"], "--bootstrap: '19': allowed is a whole number from 20 to"),
        (["analyse", "--seed", "-1"], "--seed: '-1': allowed is a whole number from 0"),
        (["recommend", "--student", "x", "--level", "1.5"], "--level: '1.5': allowed is a number from 0.01 to 0.999"),
        (["recommend", "--student", "x", "--top", "0"], "--top: '0': allowed is a whole number from 1 to"),
        (["next", "--budget", "nan"], "--budget: 'nan': allowed is hours from 0 to"),
        (["status", "--watch", "soon"], "--watch: 'soon': allowed is seconds from 0.1 to 86400"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_wrong_argument_is_one_line(arguments, said, capsys):
    line = refused(arguments, capsys)
    assert re.search(said, line), line
    assert len(line) < 700


def test_config_and_configfile_are_one_option(tmp_path, capsys):
    for option in ("--config", "--configfile"):
        assert main(["config", "check", option, str(tmp_path / "none.yaml")]) == 1
        assert capsys.readouterr().err == f"{tmp_path}/none.yaml: cannot be read (No such file or directory)\n"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    assert main(["config", "check", "--log", str(tmp_path / "file/log")]) == 1
    assert re.fullmatch(r"--log: .*/file/log: cannot be written \(.*\)\n", capsys.readouterr().err)
