"""The report of a training run: one HTML file that needs nothing else, no script, no network."""

from __future__ import annotations

from html import escape
from pathlib import Path

from kdcache.config import Config
from kdcache.report.budget import draw_budget
from kdcache.report.confusion import draw_confusion
from kdcache.report.document import make_document
from kdcache.report.epochs import draw_epochs
from kdcache.report.facts import draw_run
from kdcache.report.finished import Finished, read_finished
from kdcache.report.panels import NUM_PANELS, Panel, Predictor, build_panels
from kdcache.report.samples import draw_samples
from kdcache.report.tables import draw_class_table, format_share
from kdcache.training.checkpoint import BEST
from kdcache.training.run import Data

REPORT = "report.html"


def write_report(
    config: Config,
    data: Data,
    *,
    folder: Path,
    baseline_folder: Path | None,
    num_panels: int = NUM_PANELS,
) -> Path:
    """Write the report of a finished run into its folder.

    Args:
        config: resolved settings of the run.
        data: the opened cache it was trained from.
        folder: the run's folder, with its best checkpoint, metrics and result.
        baseline_folder: the same of its baseline, if there is one; its checkpoint may have been thrown away.
        num_panels: how many validation samples are shown.

    Returns: the file. Raises: TrainingError for a damaged checkpoint, CacheCorruptError.
    """
    folders = {"baseline": baseline_folder, "student": folder}
    runs = {who: read_finished(path) for who, path in folders.items() if path}
    panels = _build_panels(config, data, runs, num_panels)
    path = folder / REPORT
    partial = path.with_name(f"{REPORT}.partial")
    html = make_document(folder.resolve().name, _draw_parts(config, data, runs, panels))
    partial.write_text(
        html, encoding="utf-8", errors="backslashreplace"
    )  # names of folders may hold bytes that are no text
    partial.replace(path)
    return path


def _build_panels(
    config: Config, data: Data, runs: dict[str, Finished], num_panels: int
) -> list[Panel]:
    """A baseline without its checkpoint has no pictures: its numbers alone are enough to reuse it."""
    asked = {
        who: Predictor(config, run.folder / BEST)
        for who, run in runs.items()
        if who == "student" or run.confusion_KK is not None
    }
    return build_panels(
        data.val, student=asked["student"], baseline=asked.get("baseline"), num_panels=num_panels
    )


def _draw_parts(
    config: Config, data: Data, runs: dict[str, Finished], panels: list[Panel]
) -> list[str]:
    student, names = runs["student"], config.dataset.names
    layouts = data.manifest.layouts
    return [
        _draw_headline(student, runs.get("baseline")),
        draw_epochs(config, runs, student.result["teacher_miou"]),
        _draw_classes(names, data, runs),
        draw_confusion(names, student, runs.get("baseline")),
        draw_samples(names, panels, total=layouts["val"].num_samples),
        draw_budget(runs, num_samples=layouts["train"].num_samples),
        draw_run(config, data, runs),
    ]


def _draw_headline(student: Finished, baseline: Finished | None) -> str:
    result = student.result
    tiles = [_draw_tile("teacher", format_share(result["teacher_miou"]), "asked once, cached")]
    compared = "No baseline was trained. "
    if result["baseline_miou"] is not None:
        tiles.append(
            _draw_tile(
                "baseline", format_share(result["baseline_miou"]), "labels only, equal budget"
            )
        )
        compared = "Difference: student - baseline, the best epoch of each, chosen on val. "
        compared += (
            ""
            if baseline
            else "The baseline's folder is gone or was not recorded: only its mIoU is known. "
        )
    best = f"best epoch, {result['best_epoch']} of {result['epochs']}"
    tiles.append(_draw_tile("student", format_share(result["miou"]), best))
    if result["improvement_points"] is not None:
        percent = result["improvement_percent"]
        relative = "" if percent is None else f"{percent:+.1f} % of the baseline"
        tiles.append(
            _draw_tile("difference", f"{result['improvement_points']:+.2f} points", relative)
        )
    return (
        f"<header><h1>{escape(student.folder.resolve().name)}</h1>"
        f'<div class="soft">mIoU on the validation split, 0 to 1; a point is 0.01</div>'
        f'<div class="tiles">{"".join(tiles)}</div><p class="soft">{compared}One seed; differences '
        "of the size of the spread between seeds mean nothing.</p></header>"
    )


def _draw_tile(title: str, value: str, note: str) -> str:
    return f'<div class="tile {title}">{title}<b>{value}</b><small>{note}</small></div>'


def _draw_classes(names: list[str], data: Data, runs: dict[str, Finished]) -> str:
    teacher, result = data.manifest.information.get("teacher_per_class_iou"), runs["student"].result
    ious = {
        **({"teacher": teacher} if teacher else {}),
        **{who: run.ious for who, run in runs.items()},
    }
    mious = {
        "teacher": result["teacher_miou"],
        "baseline": result["baseline_miou"],
        "student": result["miou"],
    }
    absent = any(iou is None for values in ious.values() for iou in values)
    note = "-: the class is in neither labels nor predictions and does not count." if absent else ""
    return f'<section><h2>IoU of each class</h2>{draw_class_table(names, ious, mious)}<p class="soft">{note}</p></section>'
