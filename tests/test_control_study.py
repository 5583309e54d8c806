"""A study of policies from its configuration to its report, in this process, and through Snakemake."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import warm
import yaml
from safetensors.torch import load_file, save_file

from kt import stages, status, store
from kt.cli import main
from kt.control import units
from kt.control.study import ControlStudy
from kt.errors import KtError
from kt.stages import policies
from kt.stages.playing import Playing
from kt.study import load
from kt.tables import schema
from kt.transfer.ledger import Ledger, unpack

ROOT = Path(__file__).resolve().parent.parent

TRAIN = {"steps": 320, "envs": 4, "rollout": 5, "evaluations": 2, "episodes": 4}
PLAIN: dict[str, Any] = {
    "title": "Policies",
    "results": "results",
    "device": "cpu",
    "data": {"task": "control", "episodes": 6, "validation": 5},
    "zoo": {
        "models": {
            "catch": {"arch": "policy_tiny", "env": "kt/Catch-v0", "train": TRAIN},
            "avoid": {"arch": "policy_tiny", "env": "kt/Avoid-v0", "train": TRAIN, "seed": 3},
        }
    },
    "flow": {
        "gather": {
            "env": "kt/Gather-v0",
            "teachers": ["catch", "avoid"],
            "student": {"arch": "policy_tiny"},
            "seeds": [0, 1],
            "training": TRAIN,
            "methods": {"flow": {}, "flow_untrained": {}, "distil": {}, "finetune_teacher": {}, "scratch": {}},
        }
    },
}
TRAININGS = 2 * 6
"""Of two seeds; each of two teachers takes the student's place."""


def configured(folder: Path, plain: dict[str, Any] = PLAIN) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(plain), "utf-8")
    return path


def changed(**keys: Any) -> dict[str, Any]:
    """The configuration with some keys changed, given with dots."""
    plain = copy.deepcopy(PLAIN)
    for at, value in keys.items():
        *path, last = at.split("__")
        section = plain
        for name in path:
            section = section[name]
        if value is None:
            del section[last]
        else:
            section[last] = value
    return plain


def loaded(path: Path) -> ControlStudy:
    study = load.load_any(path)
    assert isinstance(study, ControlStudy)
    return study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ControlStudy:
    """All stages, one after another."""
    folder = tmp_path_factory.mktemp("policies")
    path = configured(folder, changed(transfer={"export": "all", "checkpoint_seconds": 0}))
    study = loaded(path)
    study = study.model_copy(update={"results": type(study.results)(str(folder / "results"), "results")})
    layout = study.layout
    policies.data(study, layout, 1)
    for name in study.members:
        policies.member(study, layout, name, 1)
    policies.zoo(study, layout, layout.table("zoo"))
    policies.experiment(study, layout, "flow", "gather", 1)
    policies.gather(study, layout, layout.tables)
    from kt.figures.draw import draw

    draw(layout.tables, layout.figures)
    policies.report(study, path, layout.tables, None, layout.figures, layout.report)
    return study


def test_tables_tell_what_the_ledger_holds(made: ControlStudy) -> None:
    rows = schema.read_frame(made.layout.table("transfers"), "transfers")
    assert len(rows) == TRAININGS
    assert (rows["status"] == "ok").all()
    assert (rows["n"] == 6).all()
    assert (rows["epochs"] == 2).all()
    assert (rows["steps"] == 320 // 20).all()
    for row in rows.to_dict("records"):
        outcome = Ledger(made.layout.ledger).get(row["key"])
        assert outcome
        assert row["acc_after"] == unpack(outcome["last"]).mean()
    header = Path(made.layout.tables / "transfers.csv").read_text("utf-8").split("\n")[0]
    assert "return_after" in header
    assert not [name for name in header.split(",") if name.startswith("acc")]


def test_the_table_of_policies_has_their_games_and_returns(made: ControlStudy) -> None:
    rows = schema.read_frame(made.layout.table("zoo"), "zoo").set_index("name")
    assert rows["game"].to_dict() == {"catch": "kt/Catch-v0", "avoid": "kt/Avoid-v0"}
    assert (rows["train_steps"] == 320).all()
    for name, row in rows.iterrows():
        returns = store.read_json(made.layout.returns(str(name)))
        assert row["acc"] == np.mean(returns["test"])
        assert row["acc_se"] == pytest.approx(np.std(returns["test"], ddof=1) / np.sqrt(6))
        assert row["acc_validation"] == np.mean(returns["validation"])
        assert len(row["curve"]) == 2


def test_curves_have_a_row_for_each_evaluation(made: ControlStudy) -> None:
    rows = schema.read_frame(made.layout.table("returns"), "returns")
    assert len(rows) == 2 * TRAININGS
    assert rows.groupby("key")["steps"].apply(list).map(tuple).unique().tolist() == [(160, 320)]
    assert set(rows["game"]) == {"kt/Gather-v0"}
    outcome = Ledger(made.layout.ledger).get(rows["key"][0])
    assert outcome
    assert rows["acc_validation"][:2].tolist() == outcome["validation"]


def test_weights_of_each_layer_sum_to_one_and_end_with_the_student_alone(made: ControlStudy) -> None:
    rows = schema.read_frame(made.layout.table("flow"), "flow")
    flowing = rows.dropna(subset="epoch")
    assert set(flowing["method"]) == {"flow", "flow_untrained"}
    assert len(rows) - len(flowing) == TRAININGS - 4
    sums = flowing.groupby(["key", "epoch", "stage"])["weight"].sum()
    assert np.allclose(sums, 1)
    last = flowing[(flowing["epoch"] == 2) & (flowing["source"] == "self")]
    assert (last["weight"] == 1).all()
    assert set(flowing["source"]) == {"self", "catch", "avoid"}


def test_the_report_has_the_numbers(made: ControlStudy) -> None:
    page = made.layout.report.read_text("utf-8")
    rows = schema.read_frame(made.layout.table("returns"), "returns")
    scratch = rows[rows["method"] == "scratch"].drop_duplicates("key")["acc"].mean()
    assert f"<code>scratch</code> ends at {scratch:.2f}".replace("-", "−") in page
    assert "6 test episodes" in page
    for absent in ("positive flip", "accuracy", "image</", "Not drawn"):
        assert absent not in page


def test_figures_have_their_numbers_beside_them(made: ControlStudy) -> None:
    rows = pd.read_csv(made.layout.figures / "returns.csv")
    assert len(rows) == 2 * TRAININGS
    assert {"return", "return_validation"} < {*rows.columns}
    faded = pd.read_csv(made.layout.figures / "flow.csv")
    assert set(faded["source"]) == {"self", "catch", "avoid", "alone", "with teachers"}
    assert faded.loc[faded["shown"] == "weight"].groupby(["stage", "epoch"])["mean"].sum().to_numpy() == pytest.approx(
        1
    )
    assert sorted(path.stem for path in made.layout.figures.glob("*.png")) == ["flow", "returns"]


def test_an_exported_student_is_the_trained_one_and_a_plain_network(made: ControlStudy) -> None:
    folders = [path.parent for path in made.layout.students.glob("*/README.md")]
    assert len(folders) == TRAININGS
    folder = made.layout.students / "flow.gather.from-catch+avoid.flow.seed0"
    plain = store.read_json(folder / "config.json")["model_args"]
    student = timm.create_model("policy_tiny", **plain, checkpoint_path=str(folder / "model.safetensors")).eval()
    fresh = timm.create_model("policy_tiny", **plain)
    assert student.state_dict().keys() == fresh.state_dict().keys()

    job = Playing(made, made.layout, "flow.gather", made.flow["gather"])
    unit = next(u for u in units.of_experiment(made, "flow.gather", made.flow["gather"], job.game) if u.seed == 0)
    _, left = job.compute(job.begin(1), unit, "again")
    assert left
    trained = left.model.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in student.state_dict().items())
    card = (folder / "README.md").read_text("utf-8")
    assert "a logit for each of" in card
    assert "bytes divided by 255" in card


def test_finished_trainings_are_not_done_again(made: ControlStudy, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.layout.ledger.rglob("*.json")}
    with caplog.at_level("INFO"):
        policies.experiment(made, made.layout, "flow", "gather", 1)
    assert f"{TRAININGS} trainings, {TRAININGS} in the ledger, 0 to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in made.layout.ledger.rglob("*.json")} == before


def test_status_counts_trainings_and_no_pairs(made: ControlStudy) -> None:
    state = status.survey(made, made.layout)
    assert (state.units, state.done, state.left) == (TRAININGS, TRAININGS, 0)
    assert "pairs" not in state.line()


def test_before_anything_ran_the_trainings_are_counted(tmp_path: Path) -> None:
    study = loaded(configured(tmp_path))
    state = status.survey(study, type(study.layout)(tmp_path / "nothing"))
    assert (state.units, state.done, state.left) == (TRAININGS, 0, TRAININGS)


def test_files_tell_whether_they_are_of_another_configuration(made: ControlStudy) -> None:
    layout = made.layout
    members = [layout.member(name) for name in ("catch", "avoid")]
    files = [layout.games, *members, layout.table("zoo"), layout.experiment("flow", "gather")]
    own = {"catch": made.zoo.models["catch"].model_copy(update={"seed": 9})}
    zoo = made.zoo.model_copy(update={"models": {**made.zoo.models, **own}})
    found = [
        [status.from_other(study, layout, path) for path in files]
        for study in (made, made.model_copy(update={"zoo": zoo}), made.model_copy(update={"title": "Other"}))
    ]
    assert found == [[False] * 5, [False, True, False, True, True], [False, False, False, True, True]]
    assert not status.from_other(made, layout, layout.table("nothing"))


def test_damaged_weights_of_a_teacher_are_noticed(made: ControlStudy) -> None:
    path = made.layout.weights("catch")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\0\0\0")
    try:
        with pytest.raises(KtError, match="damaged, or of another training"):
            Playing(made, made.layout, "flow.gather", made.flow["gather"]).check_files({"catch"})
    finally:
        path.write_bytes(whole)


def test_another_version_of_a_game_is_refused(made: ControlStudy) -> None:
    known = store.read_json(made.layout.games)
    other = copy.deepcopy(known)
    other["flow.gather.env"]["versions"]["gymnasium"] = "0.0.1"
    store.write_json(made.layout.games, other)
    try:
        with pytest.raises(KtError, match=r"flow\.gather\.env: not the game that the study began with.*0\.0\.1"):
            Playing(made, made.layout, "flow.gather", made.flow["gather"]).begin(1)
    finally:
        store.write_json(made.layout.games, known)


def test_weights_are_kept_while_they_are_made_from_the_same(
    made: ControlStudy, caplog: pytest.LogCaptureFixture
) -> None:
    before = made.layout.weights("catch").read_bytes()
    more = made.model_copy(update={"data": made.data.model_copy(update={"episodes": 7})})
    with caplog.at_level("INFO"):
        policies.member(more, made.layout, "catch", 1)
    assert "weights catch: there" in caplog.text
    assert len(store.read_json(made.layout.returns("catch"))["test"]) == 7
    assert made.layout.weights("catch").read_bytes() == before
    policies.member(made, made.layout, "catch", 1)
    catch = made.zoo.models["catch"].model_copy(update={"seed": 1})
    zoo = made.zoo.model_copy(update={"models": {**made.zoo.models, "catch": catch}})
    other = made.model_copy(update={"zoo": zoo})
    with pytest.raises(KtError, match=r"zoo\.models\.catch: its weights were made from another recipe"):
        Playing(other, other.layout, "flow.gather", other.flow["gather"])


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"zoo__models__catch__env": "kt/Cach-v0"}, r"catch\.env: unknown environment 'kt/Cach-v0'.*kt/Catch-v0"),
        ({"flow__gather__env": "CartPole"}, r"flow\.gather\.env: .*CartPole.*'CartPole-v1'"),
        ({"zoo__models__catch__arch": "policy_tyny"}, r"zoo\.models\.catch\.arch: .*policy_tyny.*policy_tiny"),
        ({"zoo__models__catch__train": None}, r"zoo\.models\.catch: give one of `train` and `checkpoint`"),
        ({"flow__gather__teachers": ["catch", "advoid"]}, r"flow\.gather\.teachers: .*'advoid'.*'avoid'"),
        ({"flow__gather__teachers": ["catch", "catch"]}, r"flow\.gather\.teachers: .* names a teacher twice"),
        ({"flow__gather__training": {"steps": 100}}, r"flow\.gather\.training\.steps: 100 are fewer than .*1600"),
        ({"zoo__models__avoid__train": {"steps": 9}}, r"zoo\.models\.avoid\.train\.steps: 9 are fewer"),
        ({"flow__gather__methods": {}}, r"flow\.gather\.methods: no method chosen; allowed: flow,"),
        ({"flow__gather__methods": {"flow": {"stages": [True]}}}, r"stages\.0: a stage is given by .* True"),
        ({"flow__gather__methods": {"kl": {}}}, r"flow\.gather\.methods: .*'kl'"),
        ({"flow__gather__methods": {"flow": {"teacher_stages": {"cach": [0]}}}}, r"teacher_stages: .*'cach'.*'catch'"),
        ({"flow__gather__images": 3}, r"flow\.gather: .*'images'"),
        ({"pairs": {"select": "all"}}, r"unknown key 'pairs'"),
        ({"data__task": "contrl"}, r"data\.task: .*'contrl'.*'control'"),
        ({"data__episodes": 0}, r"data\.episodes: .*greater than 0"),
        ({"zoo__models__catch__args": {"width": 0}}, r"catch\.args\.width: must be a whole .* 1 to 8192, not 0"),
        ({"zoo__models__catch__args": {"width": 10**13}}, r"catch\.args\.width: .*not 10000000000000"),
        ({"zoo__models__catch__args": {"width": "64"}}, r"catch\.args\.width: .*not '64'"),
        ({"flow__gather__student": {"arch": "policy_tiny", "args": {"widht": 8}}}, r"args: .*'widht'.*'width'"),
        ({"zoo__models__catch__env": {"id": "kt/Catch-v0", "frame_stack": 10**6}}, r"catch\.env\.frame_stack: .* 100"),
        ({"zoo__models__catch__env": {"id": "kt/Catch-v0", "args": {"a": [float("nan")]}}}, r"args: .*finite .* nan"),
        ({"zoo__models__catch__seed": 1 << 32}, r"catch\.seed: .*less than 4294967296"),
        ({"zoo__models__catch__checkpoint": __file__}, r"catch: give one of `train` and `checkpoint`, not both: "),
        ({"zoo__models__catch__train": {"steps": 320, "envs": 4, "rollot": 5}}, r"train: .*'rollot'.*'rollout'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_before_anything_runs(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(KtError) as raised:
        load.load_any(configured(tmp_path, changed(**keys)))
    assert re.search(said, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"flow__gather__env": "CartPole-v1"}, r"flow\.gather\.teachers: catch sees \[3, 10, 10\].*\[4, 1, 1\]"),
        ({"flow__gather__student": {"arch": "resnet18"}, "flow__gather__env": "CartPole-v1"}, r"flow\.gather"),
        ({"zoo__models__catch__env": "Pendulum-v1"}, r"zoo\.models\.catch\.env: actions are Box.*allowed: Discrete"),
        (
            {"flow__gather__methods": {"flow": {"stages": ["conv1"]}}},
            r"no module 'conv1'; its stages: hidden\.conv1, .*; did you mean 'hidden\.conv1'\?",
        ),
        (
            {"flow__gather__methods": {"flow": {"stages": ["hidden.conv9"]}}},
            r"flow\.gather\.methods\.flow\.stages: .*'hidden\.conv9'.*hidden\.conv",
        ),
    ],
)
def test_what_cannot_be_played_or_learnt_fails_in_the_first_stage(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    study = loaded(configured(tmp_path, changed(**keys)))
    layout = type(study.layout)(tmp_path / "results")
    with pytest.raises(KtError) as raised:
        policies.data(study, layout, 1)
    assert re.search(said, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)
    assert not layout.weights("catch").exists()


def test_commands_about_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configured(tmp_path)
    commands = (
        *(["pair", "catch", "avoid"], ["explore"], ["pairs"], ["analyse"], ["recommend", "--student", "x"]),
        *(["amalgamate", "--experiment", "x"], ["zoo", "--preview"], ["next", "--budget", "1"], ["choose"]),
    )
    for command in commands:
        assert main([*command, "--config", str(path)]) == 1
        lines = capsys.readouterr().err.strip().split("\n")
        assert len(lines) == 1
        assert "control" in lines[0] or "unknown experiment 'x'; allowed: none" in lines[0]


def test_trackers_show_returns_over_actions(made: ControlStudy) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from kt.stages.tracking import track

    assert track(made, made.layout, "tensorboard").startswith(f"tensorboard: {TRAININGS} trainings added, 0 there")
    (folder, *_) = (made.layout.tracking / "tensorboard").glob("*/gather.scratch.seed0.*")
    events = EventAccumulator(str(folder)).Reload()
    rows = schema.read_frame(made.layout.table("returns"), "returns")
    mine = rows[(rows["method"] == "scratch") & (rows["seed"] == 0)]
    assert [event.step for event in events.Scalars("epochs/validation")] == mine["steps"].tolist() == [160, 320]
    assert [event.value for event in events.Scalars("epochs/validation")] == pytest.approx(mine["acc_validation"])
    assert events.Scalars("return_after")[0].value == pytest.approx(mine["acc"].iloc[0])


def test_a_checkpoint_of_another_size_of_head_is_refused(made: ControlStudy, tmp_path: Path) -> None:
    source = made.layout.weights("catch")
    members = {"zoo__models__catch": {"arch": "policy_tiny", "env": "kt/Catch-v0", "checkpoint": str(source)}}
    study = loaded(configured(tmp_path, changed(**members)))
    layout = type(study.layout)(tmp_path / "results")
    policies.data(study, layout, 1)
    policies.weights(study, layout, "catch", 1)
    assert store.digest_file(layout.weights("catch")) == store.digest_file(source)
    assert store.read_json(layout.member("catch"))["train_steps"] is None

    wider = {name: torch.zeros(9, *t.shape[1:]) if "head" in name else t for name, t in load_file(source).items()}
    save_file(wider, tmp_path / "wider.safetensors")
    members["zoo__models__catch"]["checkpoint"] = str(tmp_path / "wider.safetensors")
    study = loaded(configured(tmp_path, changed(**members)))
    with pytest.raises(
        KtError, match=r"9 outputs, but 4 are needed; one for each of the 3 actions of kt/Catch-v0, and"
    ):
        policies.data(study, layout, 1)

    members["zoo__models__catch"]["arch"] = "policy_mlp"
    study = loaded(configured(tmp_path, changed(**members)))
    with pytest.raises(KtError, match=r"zoo\.models\.catch\.checkpoint: "):
        policies.data(study, layout, 1)


@pytest.mark.slow
def test_the_workflow_runs_and_goes_on_where_it_was(tmp_path: Path, made: ControlStudy) -> None:
    configured(tmp_path)
    command = [warm.python(), "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    command += ["--configfile", str(tmp_path / "config.yaml")]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    for table in ("transfers", "returns", "zoo"):
        ours = schema.read_frame(tmp_path / "results/tables" / f"{table}.parquet", table)
        theirs = schema.read_frame(made.layout.table(table), table)
        timed = ["seconds", "train_seconds"]
        pd.testing.assert_frame_equal(
            ours.drop(columns=timed, errors="ignore"), theirs.drop(columns=timed, errors="ignore")
        )
    again = subprocess.run([*command, "-n"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Nothing to be done" in again.stdout + again.stderr
    assert stages.of(made) is policies

    # a longer list of seeds, and a game that only one of the members has
    for keys, rules in (
        ({"flow__gather__seeds": [0, 1, 2]}, {"flow", "tables", "figures", "report"}),
        ({"zoo__models__catch__env": {"id": "kt/Catch-v0", "frame_stack": 1}}, {"data", "member", "flow"}),
    ):
        configured(tmp_path, changed(**keys))
        planned = subprocess.run([*command, "-n"], check=True, cwd=tmp_path, capture_output=True, text=True)
        text = planned.stdout + planned.stderr
        assert rules <= set(re.findall(r"^(\w+) +\d+$", text, re.M)), text
        assert "rules that are not present" not in text

    # the same folder without Snakemake's records, as of a copy: the files tell what they were made from
    shutil.rmtree(tmp_path / ".snakemake")
    for keys, rules in (
        ({}, set()),
        ({"flow__gather__training": {**TRAIN, "lr": 0.01}}, {"flow", "zoo", "tables", "figures", "report"}),
        ({"zoo__models__catch__seed": 9}, {"member", "flow", "zoo", "tables", "figures", "report"}),
    ):
        configured(tmp_path, changed(**keys))
        planned = subprocess.run([*command, "-n"], check=True, cwd=tmp_path, capture_output=True, text=True)
        text = planned.stdout + planned.stderr
        assert set(re.findall(r"^(\w+) +\d+$", text, re.M)) - {"all", "total"} == rules, text
        assert ("kt: results: made elsewhere" in text) == bool(rules)
