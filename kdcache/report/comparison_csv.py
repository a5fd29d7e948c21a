"""A comparison as CSV: a line a run, so that every number of the table can be counted again."""

from __future__ import annotations

import csv
import io

from kdcache.analysis.comparison import Comparison, format_value
from kdcache.analysis.rows import Row, best_miou, last_miou
from kdcache.analysis.runs import SEED, Run


def format_csv(comparison: Comparison) -> str:
    """Columns: row, folder, seed, mious and IoUs (0 to 1), differences from the baseline of the same seed (points), seconds an
    epoch, then every fact by name. Empty where there is none."""
    settings = sorted({name for row in comparison.rows for name in row.facts})
    ious = [f"iou {number} {name}" for number, name in enumerate(comparison.names)]
    columns = [
        "row",
        "folder",
        SEED,
        "best_miou",
        "best_epoch",
        "last_miou",
        "best_points",
        "last_points",
        "baseline",
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, "epoch_s", "encoding", *settings, *ious])
    for row, run in comparison.runs:
        facts = [format_value(row.facts[name]) if name in row.facts else "" for name in settings]
        writer.writerow([*_list_numbers(row, run), run.epoch_s, row.encoding, *facts, *run.ious])
    return out.getvalue()


def _list_numbers(row: Row, run: Run) -> list[object]:
    base = next((base.folder for own, base in row.pairs if own is run), None)
    points = [row.differences(measure).get(run.seed) for measure in (best_miou, last_miou)]
    return [row.name, run.folder, run.seed, run.miou, run.best_epoch, run.last_miou, *points, base]
