"""A large synthetic study, and how fast its page to explore opens and reacts in a real browser.

The zoo is that of `benchmarks/planted.py`, with all ordered pairs scored and so many of them transferred by two methods
and their controls, ten classes, and 5,000 test images. Its tables, in the folder `--out`, have every column that
`kt figures`, `kt analyse` and `kt explore` read.

    python benchmarks/explore.py --models 320 --pairs 100000 --out /tmp/study

Chromium opens the page headless, without a GPU. Printed are the page's size, the seconds to make it, and milliseconds:
until the first paint, until the plot is there, for a filter, for a complete redraw as after a zoom, for a frame while
the plot is dragged, and for hover. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
from planted import simulate

from kt.analysis.deltas import PAIR, summarise
from kt.figures.tables import Tables
from kt.report.explore import render
from kt.tables import schema

IMAGES, CLASSES, WITHIN = 5000, 10, 2.0
METHODS = {"kl_dp": True, "kl_dp_unsup": False, "finetune": True, "self": False}
"""Whether they use labels."""
CONTROLS = ("finetune", "self")


def study(models: int, pairs: int, seeds: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """The tables of a synthetic study as frames."""
    rng = np.random.default_rng(seed)
    transfers, zoo, scores = simulate(models, rng, True, tuple(METHODS), seeds, correlated=True)
    zoo["acc"] = (zoo["acc"] * IMAGES / 100).round() * 100 / IMAGES
    acc = zoo.set_index("name")["acc"]
    scores = scores.assign(
        split="test", n=IMAGES, acc_teacher=scores["teacher"].map(acc), acc_student=scores["student"].map(acc)
    )
    scores["acc_difference"] = scores["acc_teacher"] - scores["acc_student"]
    flips = (scores["pos_flips"] * IMAGES / 100).round().astype(int)
    scores["pos_flips"] = 100 * flips / IMAGES
    scores["neg_flips"] = scores["pos_flips"] - scores["acc_difference"]
    share = scores["pos_flips"] / 100
    scores["pos_flips_se"] = 100 * np.sqrt(share * (1 - share) / IMAGES)
    strong = rng.dirichlet(np.full(CLASSES, 2.0), models)[np.searchsorted(zoo["name"], scores["teacher"])]
    scores["flips_by_class"] = list(rng.multinomial(flips, strong))
    chosen = scores[PAIR].iloc[np.sort(rng.permutation(len(scores))[:pairs])]
    return _complete(
        {
            "zoo": _models(zoo),
            "complementarity": scores,
            "pairs": chosen.assign(reason="random", chunk=0),
            "transfers": _transfers(transfers.merge(chosen, on=PAIR), acc),
        }
    )


def _models(zoo: pd.DataFrame) -> pd.DataFrame:
    share = zoo["acc"] / 100
    return zoo.assign(
        arch=zoo["family"] + "_net", input_size=224, feature_width=512, recipe=[["augment=shift"]] * len(zoo),
        fingerprint=[f"{i:064x}" for i in range(len(zoo))], acc_se=100 * np.sqrt(share * (1 - share) / IMAGES),
        acc_validation=zoo["acc"], pretraining="in1k",
    )  # fmt: skip


def _transfers(rows: pd.DataFrame, acc: pd.Series) -> pd.DataFrame:
    control = rows["method"].isin(CONTROLS)
    shared = rows.groupby(["method", "student", "seed"])["delta"].transform("first")
    change = (rows["delta"].where(~control, shared) * IMAGES / 100).round()
    gain, loss = (change.clip(lower=0) + 40) / IMAGES, (-change).clip(lower=0) / IMAGES + 40 / IMAGES
    of = rows["teacher"].where(~control, "")
    return rows.assign(
        teachers=[[name] for name in rows["teacher"]], control=control, uses_labels=rows["method"].map(METHODS),
        trains=True, status="ok", n=IMAGES, acc_before=rows["student"].map(acc), delta=100 * (gain - loss),
        acc_after=rows["student"].map(acc) + 100 * (gain - loss),
        delta_se=100 * np.sqrt((gain + loss - (gain - loss) ** 2) / IMAGES), knowledge_gain=100 * gain,
        knowledge_loss=100 * loss, transfer_rate=(30 + 4 * rows["delta"]).clip(0, 100), epochs=4,
        key=rows["method"] + "-" + of + "-" + rows["student"] + "-" + rows["seed"].astype(str),
    )  # fmt: skip


def _complete(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables with all columns of their schemas, and the table ``methods``."""
    made = {}
    for name, frame in tables.items():
        columns = schema.arrow_schema(name).names
        made[name] = frame.assign(**{column: None for column in columns if column not in frame})[columns]
    return {**made, "methods": summarise(made["transfers"], made["complementarity"], WITHIN)}


PROBE = """<script>{
const frames = async () => {
  await new Promise(requestAnimationFrame);
  await new Promise(done => setTimeout(done));
};
const timed = async act => {
  const began = performance.now();
  act();
  await frames();
  return performance.now() - began;
};
const median = async act => {
  const times = [];
  for (let i = 0; i < 7; i++) times.push(await timed(() => act(i)));
  return times.sort((a, b) => a - b)[3];
};
const choose = (id, value) => {
  const { form } = document.forms;
  form[id].value = value;
  form[id].dispatchEvent(new Event("input", { bubbles: true }));
};
const within = (part, of) => of.shadowRoot.querySelector(part);
new MutationObserver(async () => {
  const found = { ready: performance.now() };
  await frames();
  found.first_paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  found.points = scatter.source.data.x.length;
  found.filter = await median(i => choose("gap", ["", "weaker", "stronger"][i % 3]));
  choose("gap", "");
  await frames();
  const { x_range: range } = scatter.plot, start = range.start;
  found.redraw = await median(i => { range.start = start - i * 1e-3; });
  const surface = within(".bk-events", within(".bk-Canvas", document.querySelector(".place *")));
  const box = surface.getBoundingClientRect(), mouse = { pointerId: 1, isPrimary: true, pointerType: "mouse" };
  const at = (type, x, buttons) => surface.dispatchEvent(new PointerEvent(type, {
    ...mouse, buttons, clientX: box.left + x, clientY: box.top + box.height / 2, bubbles: true, composed: true,
  }));
  found.hover = await median(i => at("pointermove", box.width / 2 + i, 0));
  scatter.plot.toolbar.active_drag = scatter.plot.toolbar.tools.find(tool => tool.type === "PanTool");
  at("pointerdown", 300, 1);
  found.drag = await median(i => at("pointermove", 320 + 8 * i, 1));
  at("pointerup", 380, 0);
  fetch("ADDRESS", { method: "POST", mode: "no-cors", body: JSON.stringify(found) });
}).observe(document.documentElement, { attributeFilter: ["data-ready"] });
}</script>"""
DATA = '<script type="application/json"'
"""Where the page's data begin: the probe stands before them."""


def measure(page: Path, minutes: float = 3) -> dict[str, float]:
    """Milliseconds of what the probe does in Chromium, which sends them to a server on the loopback interface."""
    name = next(name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name))
    found: dict[str, float] = {}

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            threading.Thread(target=server.shutdown).start()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server, tempfile.TemporaryDirectory() as folder:
        probed = Path(folder) / "page.html"
        probe = PROBE.replace("ADDRESS", f"http://127.0.0.1:{server.server_port}/")
        probed.write_text(page.read_text("utf-8").replace(DATA, f"{probe}\n{DATA}", 1), "utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")
        command = [name, *options, f"--user-data-dir={folder}/profile", "--remote-debugging-port=0", probed.as_uri()]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        patience = threading.Timer(60 * minutes, server.shutdown)
        patience.start()
        server.serve_forever()
        patience.cancel()
        browser.terminate()
        browser.wait()
    if not found:
        sys.exit(f"the page said nothing within {minutes:g} minutes")
    return found


def main() -> None:
    """Make the study and its page, open it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=320, help="models (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs with a transfer (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every transfer (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write `tables` and `explore.html` into")
    args = parser.parse_args()
    for name, frame in study(args.models, args.pairs, args.seeds).items():
        clean = frame.astype(object).where(frame.notna(), None).to_dict("list")
        schema.write(args.out / "tables" / f"{name}.parquet", name, schema.build(name, clean))
    began, page = time.perf_counter(), args.out / "explore.html"
    page.write_text(render(Tables.read(args.out / "tables"), "A synthetic study", WITHIN), "utf-8")
    made = time.perf_counter() - began
    result = {"megabytes": round(page.stat().st_size / 1e6, 1), "seconds": round(made, 1)}
    result |= {name: round(value) for name, value in measure(page).items()}
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
