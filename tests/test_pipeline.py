"""The whole Snakemake workflow on a tiny study: real processes, real files, real kills."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm
import yaml
from studies import small_zoo

from kt import pairs, predictions, store
from kt.analysis.inputs import CLASSIFICATION
from kt.analysis.wording import caption_words
from kt.figures.captions import CAPTIONS
from kt.layout import Layout
from kt.study import recipes
from kt.study.load import load
from kt.tables.of_experiments import OPTIONAL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent

STUDY: dict[str, Any] = {
    "title": "A tiny study",
    "results": "results",
    "device": "cpu",
    "data": {"source": "digits", "seed": 0, "splits": {"zoo": 120, "transfer": 80, "validation": 60, "test": 150}},
    "zoo": small_zoo(
        byob={"arch": "test_byobnet", "train": {"epochs": 4}},
        mixer={"arch": "tiny_mixer", "kind": "mlp", "train": {"epochs": 6, "thin": {"classes": [0, 1]}}},
    ),
    "pairs": {"select": "all"},
    "transfer": {
        "methods": {"kl": {}, "xekl": {}, "kl_dp": {}, "kl_dp_unsup": {}, "self": {}, "finetune": {}},
        "seeds": [0, 1],
        "training": {"epochs": 2, "batch_size": 40, "lr": 1e-3},
    },
}


class Checkout:
    """A working directory with a study in it, run by the repository's Snakefile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, copy.deepcopy(STUDY)

    def command(self, *arguments: str, python: str = sys.executable) -> list[str]:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.study, sort_keys=False))
        snakemake = [python, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        profile = ["--workflow-profile", str(ROOT / "profiles/default")]
        return [*snakemake, *profile, "--cores", "1", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, python=warm.python())
        return subprocess.run(command, cwd=self.folder, text=True, capture_output=True)

    def succeed(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"results/tables/{name}.parquet")

    def ledger(self) -> set[str]:
        return {path.stem for path in (self.folder / "results/ledger").glob("??/*.json")}

    def weights(self) -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (self.folder / "results/zoo").glob("*.safetensors")}


def without_seconds(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["seconds"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """The tiny study after one undisturbed run, and what the run printed."""
    checkout = Checkout(tmp_path_factory.mktemp("study"))
    return checkout, checkout.succeed()


def test_a_run_makes_every_table_figure_and_the_report(finished: tuple[Checkout, str]) -> None:
    results = finished[0].folder / "results"
    for name in ("zoo", "complementarity", "pairs", "transfers", "methods"):
        assert (results / f"tables/{name}.parquet").stat().st_size > 0
        assert len(pd.read_csv(results / f"tables/{name}.csv")) == len(finished[0].table(name))
    figures = [name for name in CAPTIONS if name not in OPTIONAL]
    for name in figures:
        assert (results / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
    drawn = [name for name in figures if len(pd.read_csv(results / f"figures/{name}.csv")) > 0]
    assert {"delta_by_method", "success_by_method", "flips_vs_accuracy"} <= set(drawn)
    assert "predictor_ladder" not in drawn  # two models leave none to hold out
    page = (results / "report.html").read_text()
    assert '"classes": ["0", "1", "2"' in (results / "explore.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == len(drawn)


def test_the_tables_hold_every_pair_method_and_seed(finished: tuple[Checkout, str]) -> None:
    transfers = finished[0].table("transfers")
    assert len(finished[0].table("complementarity")) == 2
    assert len(transfers) == 2 * 6 * 2
    assert transfers["status"].eq("ok").all()
    assert (
        transfers["delta"].equals(transfers["acc_after"] - transfers["acc_before"])
        or (transfers["delta"] - (transfers["acc_after"] - transfers["acc_before"])).abs().max() < 1e-9
    )
    assert (transfers["knowledge_gain"] - transfers["knowledge_loss"] - transfers["delta"]).abs().max() < 1e-9
    shared = transfers[transfers["control"]].groupby(["student", "method", "seed"])["key"].nunique()
    assert shared.eq(1).all()
    assert finished[0].ledger() == set(transfers["key"])


def test_progress_is_shown_and_logs_are_kept(finished: tuple[Checkout, str]) -> None:
    checkout, printed = finished
    assert re.search(r"kt: 2 models, 2 pairs \(0 done\), 24 trainings: 0 done, 24 to do", printed)
    assert "transfer to mixer: 12 of 12" in printed
    assert "transfer to mixer: 12 of 12" in (checkout.folder / "results/logs/transfer/mixer.0.log").read_text()


def test_the_job_of_the_largest_student_begins_first(finished: tuple[Checkout, str]) -> None:
    members = (finished[0].folder / "results/zoo").glob("*.json")
    macs = {path.stem: json.loads(path.read_text())["macs"] for path in members}
    begun = re.findall(r"^Job \d+: transfer to (\w+), part 0$", finished[1], re.MULTILINE)
    assert begun == sorted(macs, key=macs.__getitem__, reverse=True)


def test_a_second_run_does_nothing(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    before = {path: path.stat().st_mtime_ns for path in (checkout.folder / "results").rglob("*.parquet")}
    printed = checkout.succeed()
    assert "24 done, 0 to do" in printed
    assert "transfer to" not in printed
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_snakemakes_own_report_has_the_pages_and_the_figures_with_our_words(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    checkout.succeed("--report", "results/snakemake.zip")
    with zipfile.ZipFile(checkout.folder / "results/snakemake.zip") as made:
        page = made.read("snakemake/report.html").decode()
        kept = {Path(name).name for name in made.namelist() if "/data/" in name}
    figures = [name for name in CAPTIONS if name not in OPTIONAL]
    assert {"report.html", "explore.html", *(f"{name}.png" for name in figures)} <= kept
    told = [CAPTIONS[name].told(caption_words(CLASSIFICATION)) for name in figures]
    assert {caption.heading for caption in told} <= set(map(json.loads, re.findall(r'"figure": (".*?")', page)))
    assert all(json.dumps(caption.reading) in page for caption in told)
    assert "Nothing to be done" in checkout.succeed("-n")


def test_a_dry_run_says_what_is_done_and_never_imports_torch(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    check = "import sys, snakemake.cli as c\ntry: c.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check, *checkout.command("-n")[3:]], cwd=checkout.folder, text=True, capture_output=True
    )
    assert done.stdout.strip().endswith("False"), done.stdout + done.stderr
    assert "2 pairs (2 done)" in done.stderr


def test_jobs_take_the_cores_that_the_profile_names_and_other_resources_rerun_nothing(
    finished: tuple[Checkout, str],
) -> None:
    resources = ["--set-resources", "transfer:cpus_per_task=4", "transfer:mem_mb=123", "member:runtime=7"]
    assert "Nothing to be done" in finished[0].succeed("-n", *resources)
    printed = finished[0].succeed("-n", "-p", "--forcerun", "transfer", *resources)
    assert len(re.findall(r"kt transfer .* --threads 4 ", printed)) == 2


def test_a_copy_without_records_is_made_again_where_its_files_are_of_another_configuration(
    finished: tuple[Checkout, str], tmp_path: Path
) -> None:
    copied = Checkout(tmp_path / "copy")
    shutil.copytree(finished[0].folder / "results", copied.folder / "results")  # times of change as they were
    assert "Nothing to be done" in copied.succeed("-n")
    copied.study["zoo"]["models"]["byob"]["train"]["epochs"] = 5
    copied.study["data"]["seed"] = 1
    planned = dict(re.findall(r"^(\w+) +(\d+)$", copied.succeed("-n"), re.M))
    assert {name: planned[name] for name in ("data", "member", "transfer")} == {
        "data": "1",
        "member": "2",
        "transfer": "2",
    }
    copied.study["data"]["seed"] = 0
    planned = dict(re.findall(r"^(\w+) +(\d+)$", copied.succeed("-n"), re.M))
    assert "data" not in planned
    assert {name: planned[name] for name in ("member", "transfer", "tables", "analysis")} == {
        "member": "1",
        "transfer": "2",
        "tables": "1",
        "analysis": "1",
    }


def test_one_figure_can_be_asked_for(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    target = checkout.folder / "results/figures/flips_heatmap.png"
    target.unlink()
    checkout.succeed("results/figures/flips_heatmap.png")
    assert target.exists()


def test_a_new_model_trains_only_itself_and_its_pairs_and_leaves_without_trace(
    finished: tuple[Checkout, str], tmp_path: Path
) -> None:
    checkout, before = finished[0], finished[0].ledger()
    table, weights = checkout.table("transfers"), checkout.weights()
    checkout.study["zoo"]["models"]["resnet"] = {
        "arch": "resnet10t",
        "args": {"channels": [8, 16, 16, 32], "stem_width": 8},
        "train": {"epochs": 3},
    }
    printed = checkout.succeed("--until", "tables")
    pairs, methods, controls, seeds = 4, 4, 2, 2
    assert f"{pairs * methods * seeds + controls * seeds} to do" in printed
    assert len(checkout.ledger() - before) == pairs * methods * seeds + controls * seeds
    assert {name: checkout.weights()[name] for name in weights} == weights
    grown = checkout.table("transfers")
    assert len(grown) == 6 * 6 * 2

    ledger = checkout.ledger()
    del checkout.study["zoo"]["models"]["resnet"]
    checkout.succeed("--until", "tables")
    assert checkout.ledger() == ledger
    pd.testing.assert_frame_equal(checkout.table("transfers"), table, check_exact=True)


def test_a_new_model_is_scored_and_drawn_into_strata_without_scoring_the_rest_again(
    finished: tuple[Checkout, str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0].folder, tmp_path / "grown")
    checkout = Checkout(tmp_path / "grown")
    checkout.study["zoo"]["models"]["late"] = {"arch": "test_byobnet", "train": {"epochs": 1}}
    checkout.study["pairs"] = {"select": "stratified", "gaps": [0.0]}
    printed = checkout.succeed("--until", "complementarity")
    assert "4 of 6 ordered pairs scored on 150 test images" in printed
    checkout.succeed("--until", "pairs")
    pairs = checkout.table("pairs")
    assert set(pairs["student"]) == {"byob", "mixer", "late"}
    kin = pairs["reason"].str.partition(", ")[2]
    assert (kin == "same family").tolist() == [
        set(pair) == {"byob", "late"} for pair in pairs[["teacher", "student"]].to_numpy()
    ]


def test_a_changed_parameter_reruns_that_method_alone(finished: tuple[Checkout, str]) -> None:
    checkout, before = finished[0], finished[0].ledger()
    checkout.study["transfer"]["methods"]["xekl"] = {"alpha": 0.9}
    checkout.succeed("--until", "tables")
    new = checkout.ledger() - before
    transfers = checkout.table("transfers")
    assert set(transfers.loc[transfers["key"].isin(new), "method"]) == {"xekl"}
    assert len(new) == 2 * 2
    checkout.study["transfer"]["methods"]["xekl"] = {}
    ledger = checkout.ledger()
    checkout.succeed("--until", "tables")
    assert checkout.ledger() == ledger


def test_a_search_comes_before_the_transfer_is_counted_and_trains_only_what_is_missing(
    finished: tuple[Checkout, str],
) -> None:
    checkout, before = finished[0], finished[0].ledger()
    checkout.study["transfer"]["search"] = {"methods": {"xekl": {"alpha": [0.5, 1.0]}}, "pairs": 1}
    plan = checkout.succeed("-n")
    # two candidates on one pair; the transfers of xekl, two pairs and two seeds, wait for the choice
    assert "26 trainings: 20 done, 6 to do" in plan
    assert [re.search(rf"^{rule} +(\d+)$", plan, re.MULTILINE)[1] for rule in ("search", "choose", "transfer")] == [
        "1", "1", "2",
    ]  # fmt: skip
    checkout.succeed("--until", "tables")
    chosen = checkout.table("search").set_index("parameters")["chosen"]
    new = 2 if chosen['{"alpha": 0.5}'] else 6  # 0.5 is what xekl had before
    assert len(checkout.ledger() - before) == new
    assert f"{24 + 2} done, 0 to do" in checkout.succeed("-n")
    del checkout.study["transfer"]["search"]
    checkout.succeed("--until", "tables")
    assert "24 done, 0 to do" in checkout.succeed("-n")


def test_random_crops_are_predicted_and_trained_on(finished: tuple[Checkout, str]) -> None:
    checkout, before = finished[0], finished[0].ledger()
    transfer = checkout.study["transfer"]
    checkout.study["transfer"] = {**transfer, "methods": {"kl": {}, "self": {}}, "views": {"n": 2, "scale": [0.5, 1]}}
    checkout.succeed("--until", "tables")
    found = predictions.read(checkout.folder / "results/predictions/byob.safetensors", "transfer")
    assert found.answers.shape == (2 * 80, 10)
    assert not np.array_equal(found.answers[:80], found.answers[80:])
    assert np.array_equal(found.ids[:80], found.ids[80:])
    rows = checkout.table("transfers")
    assert rows["status"].eq("ok").all()
    assert len(checkout.ledger() - before) == (2 + 2) * 2  # pairs by kl, students by self, two seeds
    assert "8 done, 0 to do" in checkout.succeed("-n")
    command = [sys.executable, "-m", "kt", "complementarity", "--split", "transfer", "--out", "t.parquet"]
    refused = subprocess.run(command, cwd=checkout.folder, text=True, capture_output=True)
    assert (
        "transfer.views: pairs are scored on plain images and all logits; allowed splits: validation, test"
        in refused.stderr
    )
    checkout.study["transfer"] = transfer
    checkout.succeed("--until", "tables")
    assert checkout.ledger() - before == set(rows["key"])


def test_a_damaged_ledger_record_is_reported_set_aside_and_recomputed(finished: tuple[Checkout, str]) -> None:
    checkout = finished[0]
    checkout.succeed("--until", "tables")
    table = checkout.table("transfers")
    key = table["key"].iloc[0]
    record = checkout.folder / f"results/ledger/{key[:2]}/{key}.json"
    record.write_bytes(record.read_bytes()[:-40])
    assert "1 damaged ledger record" in checkout.succeed("-n")
    assert record.exists(), "a dry run changes nothing"
    printed = checkout.succeed("--until", "tables")
    assert f"record {key[:12]} is damaged; set aside" in printed
    assert (checkout.folder / f"results/ledger/damaged/{key}.json").exists()
    assert "1 to do" in printed
    pd.testing.assert_frame_equal(
        without_seconds(checkout.table("transfers")), without_seconds(table), check_exact=True
    )


def test_a_killed_run_goes_on_and_ends_bit_identical_to_an_undisturbed_one(
    finished: tuple[Checkout, str], tmp_path: Path
) -> None:
    checkout = Checkout(tmp_path / "killed")
    run = subprocess.Popen(
        checkout.command("--until", "tables"),
        cwd=checkout.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(checkout.ledger()) < 3:
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kept = len(checkout.ledger())
    assert kept < 24
    printed = checkout.succeed("--until", "tables")
    assert f"{kept} done, {24 - kept} to do" in printed
    pd.testing.assert_frame_equal(
        without_seconds(checkout.table("transfers")), without_seconds(finished[0].table("transfers")), check_exact=True
    )


def test_two_runs_do_not_share_a_results_folder(finished: tuple[Checkout, str]) -> None:
    from kt import store

    checkout = finished[0]
    with store.lock(checkout.folder / "results"):
        done = checkout.run("--forcerun", "pairs")
    assert done.returncode != 0
    assert f"in use by another run (process {os.getpid()}" in done.stdout + done.stderr


BAD = [
    (("transfer", "metods"), {}, "did you mean 'methods'?"),
    (("transfer", "seeds"), "0", "transfer.seeds"),
    (("zoo", "models", "byob", "arch"), "test_byobnett", "did you mean 'test_byobnet'"),
    (("transfer", "methods", "kl_pd"), {}, "unknown key 'kl_pd'"),
    (("pairs",), {"select": "explicit", "pairs": [{"teacher": "nobody"}]}, "matches no pair"),
    (("data", "splits", "test"), 5000, "5260 images asked for, but 'digits' has 1797"),
    (("results",), "config.yaml", "cannot be a folder"),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD, ids=[".".join(where) for where, _, _ in BAD])
def test_bad_input_is_one_line_and_runs_nothing(
    tmp_path: Path, where: tuple[str, ...], value: Any, message: str
) -> None:
    checkout = Checkout(tmp_path / "bad")
    section = checkout.study
    for key in where[:-1]:
        section = section[key]
    section[where[-1]] = value
    done = checkout.run()
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if message in line]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert not (checkout.folder / "results").exists()


def test_overrides_on_the_command_line_are_refused(tmp_path: Path) -> None:
    done = Checkout(tmp_path / "override").run("--config", "device=cpu")
    assert done.returncode != 0
    assert "give one --configfile and no --config" in done.stdout + done.stderr


def test_a_large_plan_waits_for_the_table_of_models_and_still_sees_what_changed(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "large")
    names = [f"m{i}" for i in range(150)]
    checkout.study["zoo"]["models"] = {name: {"arch": "tiny_mixer", "train": {"epochs": 1}} for name in names}
    checkout.study["pairs"] = {"select": "random", "n": 20_001}
    checkout.study["transfer"]["pairs_per_job"] = 1000
    fresh = checkout.succeed("-n")
    assert "20001 pairs (0 done)" in fresh
    assert re.search(r"transfer +150\n", fresh)
    results, study = checkout.folder / "results", load(checkout.folder / "config.yaml")
    table = pa.table({"key": []}).replace_schema_metadata({"config_hash": study.hash})
    made = ["data/images.npy", "data/labels.npy", "data/splits.parquet", "data/meta.json"]
    made += [f"zoo/{name}.{kind}" for name in names for kind in ("safetensors", "json")]
    made += [f"predictions/{name}.safetensors" for name in names]
    made += [f"tables/{name}.parquet" for name in ("zoo", "pairs")]
    made += [f"transfer/{name}/0.parquet" for name in names]
    for age, name in enumerate(made):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(table, results / name)
        else:
            note = recipes.of_member(study, Path(name).stem) if name.startswith("zoo/") else ""
            (results / name).write_text(json.dumps({"hash": "d", "fingerprint": "f", recipes.RECIPE: note}))
        os.utime(results / name, (1e9 + age, 1e9 + age))
    store.write_json(Layout(results).recipe_of_data, {recipes.RECIPE: recipes.of_data(study)})
    plan = ["-n", "--rerun-triggers", "mtime", "--", *(f"results/transfer/{name}/0.parquet" for name in names)]
    assert "Nothing to be done" in checkout.succeed(*plan)

    os.utime(results / "predictions/m7.safetensors", (2e9, 2e9))
    chosen = pairs.candidates(names, pairs.Random(select="random", n=20_001))
    concerned = {student for teacher, student in chosen if "m7" in (teacher, student)}
    assert 100 < len(concerned) < 150
    assert re.search(rf"transfer +{len(concerned)}\n", checkout.succeed(*plan))
