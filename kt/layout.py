"""Paths of a study's files in its results folder, for the command line, the workflow and ``kt status`` alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from kt import store
from kt.spec import DEVICE, Folder, Spec, shown


@dataclass(frozen=True)
class Layout:
    """The paths below one results folder."""

    root: Path

    @property
    def data(self) -> Path:
        """Folder of the decoded data set; ``meta.json`` in it is written last."""
        return self.root / "data"

    def weights(self, model: str) -> Path:
        """A member's weights."""
        return self.root / "zoo" / f"{model}.safetensors"

    def member(self, model: str) -> Path:
        """Facts of a member: fingerprint, properties, training."""
        return self.root / "zoo" / f"{model}.json"

    def predictions(self, model: str) -> Path:
        """A model's answers on all splits."""
        return self.root / "predictions" / f"{model}.safetensors"

    def returns(self, policy: str) -> Path:
        """Returns of the episodes that a policy is measured on."""
        return self.root / "predictions" / f"{policy}.json"

    def complementarity(self, split: str) -> Path:
        """Scores of all ordered pairs on a split."""
        return self.root / "complementarity" / f"{split}.parquet"

    def transfer(self, student: str, chunk: int | str) -> Path:
        """The rows of one transfer job: of a chunk of pairs, of the `groups`, or of the `search`."""
        return self.root / "transfer" / student / f"{chunk}.parquet"

    def round(self, number: int) -> Path:
        """The pairs of one round of the rule `adaptive`."""
        return self.root / "rounds" / f"{number}.parquet"

    def experiment(self, rule: str, name: str) -> Path:
        """The rows of one experiment, as of a transfer job."""
        return self.root / "experiments" / rule / name / "rows.parquet"

    def details(self, rule: str, name: str) -> Path:
        """The rows of one experiment in the detail table of its kind."""
        return self.detail(rule, name, "details")

    def detail(self, rule: str, name: str, table: str) -> Path:
        """The rows of one experiment in one of several detail tables."""
        return self.root / "experiments" / rule / name / f"{table}.parquet"

    @property
    def recipe_of_data(self) -> Path:
        """Note of the recipe that the data set, or the games, were made by."""
        return self.data / "recipe.json"

    @property
    def games(self) -> Path:
        """Facts of the games of a study of policies."""
        return self.data / "games.json"

    def needs(self, rule: str, name: str) -> Path:
        """Memory and time that the trainings of one experiment need, for the job that does them."""
        return self.root / "experiments" / rule / name / "needs.json"

    @property
    def students(self) -> Path:
        """Folder of exported students, a folder each, and their index."""
        return self.root / "students"

    @property
    def tracking(self) -> Path:
        """Folder of what ``kt track`` writes, by tracker."""
        return self.root / "tracking"

    @property
    def ledger(self) -> Path:
        """Folder of finished units."""
        return self.root / "ledger"

    @property
    def checkpoints(self) -> Path:
        """Folder of unfinished units' progress."""
        return self.root / "checkpoints"

    @property
    def cluster_logs(self) -> Path:
        """A file with the path of the log folder of the cluster's jobs, as of the latest run on a cluster."""
        return self.root / "logs" / "cluster"

    @property
    def tables(self) -> Path:
        """Folder of the final tables."""
        return self.root / "tables"

    def table(self, name: str) -> Path:
        """A final table."""
        return self.tables / f"{name}.parquet"

    @property
    def analysis(self) -> Path:
        """Folder of the analysis: its tables and ``summary.md``."""
        return self.root / "analysis"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.root / "figures"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    @property
    def explore(self) -> Path:
        """The HTML page to explore the tables with."""
        return self.root / "explore.html"


class Root(Spec):
    """What every study has: a title, where it writes, and on what it runs."""

    title: str = Field("Complementary knowledge", description="title of the report")
    results: Folder = Field(
        "results",
        validate_default=True,
        description="folder that everything is written to; as all paths relative to this file's folder",
    )
    device: str = Field(
        "auto", pattern=DEVICE, description="auto, cpu, cuda or cuda:1; `auto` takes a GPU where there is one"
    )

    @property
    def hash(self) -> str:
        """Hash of the configuration, for the tables' metadata."""
        return store.digest(self.plain())

    @property
    def layout(self) -> Layout:
        """Paths of its files."""
        return Layout(shown(self.results))
