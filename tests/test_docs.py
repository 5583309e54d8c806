"""The documents say what the code does."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from kt.cli import main
from kt.study import load
from kt.tables import schema

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "results/README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def test_the_table_reference_is_the_schema() -> None:
    assert (ROOT / "docs/tables.md").read_text("utf-8").endswith(schema.markdown()), "run `kt schema`"


def test_the_committed_json_schema_is_the_typed_configuration() -> None:
    committed = json.loads((ROOT / "docs/config.schema.json").read_text("utf-8"))
    assert committed == load.json_schema(), "run `kt config schema > docs/config.schema.json`"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_merge_is_left_half_done(document: str) -> None:
    assert not re.search(r"^(<{7}|>{7}) ", (ROOT / document).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_linked_or_named_file_exists(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = re.findall(r"`((?:kt|docs|envs|tests|benchmarks|workflow)/[\w./-]*\w)", text)
    for path in linked + [name for name in named if not name.endswith("-v0")]:  # ids of games
        assert (ROOT / path).exists() or ((ROOT / document).parent / path).exists(), path


def test_every_kt_command_in_the_documents_exists(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join((ROOT / name).read_text("utf-8") for name in DOCUMENTS)
    commands = set(re.findall(r"(?:`|bin/)kt ([a-z]+)", text))
    assert len(commands) >= 6
    for command in commands:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert "example: kt " in capsys.readouterr().out


def test_the_imagenet_example_in_the_readme_is_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "/data/imagenet" in block)
    study = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8")) | yaml.safe_load(example)
    for part, name in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / "imagenet" / part / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "imagenet" / part / name / f"{i}.jpg").touch()
    study["data"] |= {"source": "imagenet", "num_classes": 1000, "classes": {"cat": 0, "dog": 999}}
    study["data"]["splits"]["validation"]["images"] = 10
    study["transfer"]["training"]["batch_size"] = 2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), "utf-8")
    main(["config", "check", "--config", str(tmp_path / "study.yaml")])
    (models,) = re.findall(r"these pass (\d+) models", example)
    assert f"{models} models" in capsys.readouterr().out


def test_the_method_in_the_guide_works(tmp_path: Path) -> None:
    import torch

    from kt.tasks.classification import Classification

    text = (ROOT / "docs/extending.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Cautious" in block)
    namespace: dict[str, object] = {"__name__": "guide"}
    exec(compile(code, "docs/extending.md", "exec"), namespace)
    method = namespace["Cautious"](threshold=0.8)  # type: ignore[operator]
    frozen = torch.tensor([[9.0, 0.0], [0.1, 0.0]])
    targets, taught = method.targets(Classification(), torch.zeros(2, 2), frozen, torch.tensor([0, 0]))
    assert taught.tolist() == [False, True]
    assert targets.tolist() == [[9.0, 0.0], [0.0, 0.0]]


def test_the_workflow_knows_every_figure() -> None:
    from kt.figures.captions import CAPTIONS
    from kt.figures.draw import FIGURES
    from kt.report.sections import SECTIONS

    assert list(FIGURES) == list(CAPTIONS)
    assert {caption.section for caption in CAPTIONS.values()} <= {section.name for section in SECTIONS}
