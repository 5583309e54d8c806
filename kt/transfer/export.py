"""Export of trained students: their weights, and a card that says what each is and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt import store
from kt.transfer.ledger import Record

if TYPE_CHECKING:
    from kt.transfer.session import Left


def write(path: Path, left: Left, row: Mapping[str, Any], unit: Record, outputs: int) -> None:
    """Write a student's weights, and then its card, which says that they are whole.

    Args:
        path: of the weights; the card lies beside them.
        left: the student.
        row: the unit's row of the table ``transfers``.
        unit: the unit's description, as in the ledger.
        outputs: number of the student's outputs.
    """
    from kt.zoo import weights

    weights.save(left.model, path)
    text = card(row, unit, path.name, *left.architecture, outputs, left.channels)
    store.write_text(path.with_suffix(".md"), text)


def card(
    row: Mapping[str, Any], unit: Record, weights: str, arch: str, args: Mapping[str, Any], classes: int, channels: int
) -> str:
    """A model card as Markdown.

    Args:
        row: the unit's row of the table ``transfers``; it finished.
        unit: the unit's description, as in the ledger.
        weights: name of the weights file beside the card.
        arch: the timm architecture.
        args: its keyword arguments.
        classes: number of classes.
        channels: colour channels of the images.
    """
    teachers = " and ".join(row["teachers"]) if not row["control"] else "nobody (control)"
    rows = [("accuracy after", f"{row['acc_after']:.2f} % of {row['n']} test images")]
    if row.get("delta") is not None:
        delta = f"{row['delta']:+.2f} ± {row['delta_se']:.2f} percentage points, on {row['n']} test images"
        change = f"{row['knowledge_gain']:.2f} % / {row['knowledge_loss']:.2f} % of the test images"
        rows = [
            ("accuracy before", f"{row['acc_before']:.2f} %"),
            ("accuracy after", f"{row['acc_after']:.2f} %"),
            ("transfer delta", delta),
            ("knowledge gain / loss", change),
        ]
    began = unit.get("architecture", {})  # of the student of an experiment
    if began.get("pretrained"):
        rows.append(("first weights", "those that timm publishes under this name"))
    elif began.get("checkpoint"):
        rows.append(("first weights", f"a checkpoint with SHA-256 `{began['checkpoint']}`"))
    rows += [("trainings spent", row["budget"]), ("unit in the ledger", f"`{row['key']}`")]
    facts = "\n".join(f"| {name} | {value} |" for name, value in rows)
    arguments = {"num_classes": classes, "in_chans": channels, **args, "checkpoint_path": weights}
    call = ", ".join([repr(arch), *(f"{name}={value!r}" for name, value in arguments.items())])
    described = json.dumps({name: unit[name] for name in ("method", "training", "seed", "data")}, indent=2)
    return f"""# {row["student"]}, after `{row["method"]}` from {teachers}

`{arch}` with {classes} classes. These are the weights after the last epoch.

| | |
|---|---|
{facts}

```python
model = timm.create_model({call})
```

How it was trained:

```json
{described}
```
"""
