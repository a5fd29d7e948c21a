"""What a person reads of a training: lines while it runs, and its result at the end."""

from __future__ import annotations

import logging
from pathlib import Path

from kdcache.config import Config
from kdcache.models.own_code import Trust
from kdcache.progress import Output, Say, join_lines
from kdcache.report.run_page import REPORT, write_report
from kdcache.report.template import format_share
from kdcache.training.distill import DistillationResult
from kdcache.training.learner import KNOWN_FAILURES
from kdcache.training.planned_run import PlannedRun
from kdcache.training.processes import Alone
from kdcache.training.run import TrainingEvents
from kdcache.training.run_folder import is_finished
from kdcache.training.samples import Data

log = logging.getLogger("kdcache")
TRAINED_HERE = Trust(any_code=True)  # settings of this command line, whose code has run already


class PrintedRun(TrainingEvents):
    """Says what happens during one run: each epoch is a line, or a block of four if verbose."""

    def __init__(self, say: Say, *, verbose: bool = False) -> None:
        self.said, self.verbose = say, verbose

    def epoch_finished(self, config: Config, history: list[dict], *, folder: Path) -> None:
        """Print the last epoch."""
        self.said(self._format(history, config))

    def _format(self, history: list[dict], config: Config) -> str:
        form = format_epoch if self.verbose else format_epoch_line
        return form(history[-1], config, best_miou=_find_best(history))


class PrintedGrid(PrintedRun):
    """Says so of each run of a grid, by its name, and writes the report of a finished run."""

    def epoch_finished(self, config: Config, history: list[dict], *, folder: Path) -> None:
        """Print the last epoch behind the name of its run."""
        self.said(f"{folder.name}  {self._format(history, config)}")

    def run_finished(self, run: PlannedRun, data: Data, *, is_changed: bool) -> None:
        """Write the report if the run is new or changed, or has none."""
        if is_changed or not (run.folder / REPORT).is_file():
            _report_run(run, data)


def report_result(result: DistillationResult, processes: Alone, *, output: Output) -> None:
    """Write the report of a finished run and say what student, baseline and teacher reach.

    Args:
        processes: that trained it; each calls this function, the first writes and speaks.
        output: what is said: a table, or the same as JSON.
    """
    folders = {"folder": result.folder, "baseline_folder": result.baseline_folder}
    report = processes.lead(write_report, result.config, result.data, **folders, trust=TRAINED_HERE)
    if processes.leads:
        teacher = result.data.manifest.information.get("teacher_per_class_iou")
        text = format_result(result.student, result.baseline, teacher, report=report)
        facts = {"folder": str(result.folder), "report": str(report), "student": result.student}
        output.tell(text)
        output.conclude({**facts, "baseline": result.baseline})


def _report_run(run: PlannedRun, data: Data) -> None:
    """Without a report a run of a grid is whole all the same: an error here is only a warning."""
    is_there = run.baseline is not None and is_finished(run.baseline)
    baseline_folder = run.baseline if is_there else None
    try:
        write_report(
            run.config,
            data,
            folder=run.folder,
            baseline_folder=baseline_folder,
            trust=TRAINED_HERE,
        )
    except KNOWN_FAILURES as error:
        log.warning("%s: finished, but without report: %s", run.folder, error)


def _find_best(history: list[dict]) -> float:
    return max(entry["miou"] for entry in history)


def format_epoch(entry: dict, config: Config, *, best_miou: float) -> str:
    """One epoch as a block of four lines: times, step, loss, mIoU."""
    weights = {
        "ce": ("CE", config.loss.alpha),
        "pseudo": ("teacher's class", config.loss.pseudo),
        "kd": ("KD", config.loss.beta),
        "feature": ("feature", config.loss.gamma),
    }
    terms = " + ".join(
        f"{weight:g} x {label} {entry[name]:.4f}"
        for name, (label, weight) in weights.items()
        if name in entry
    )
    return (
        f"epoch {entry['epoch']}/{config.train.epochs}  {entry['time_s']:.1f} s "
        f"(validation {entry['validation_s']:.1f} s)  lr {entry['lr']:.2e}\n"
        f"  step  {1000 * entry['step_s']:.0f} ms, {_find_wait(entry):.1%} of the training time "
        "the host waited for data\n"
        f"  loss  {entry['total']:.4f} = {terms}\n"
        f"  val mIoU  {entry['miou']:.4f}  (best {best_miou:.4f})"
    )


def format_epoch_line(entry: dict, config: Config, *, best_miou: float) -> str:
    """One epoch in one line."""
    return (
        f"epoch {entry['epoch']}/{config.train.epochs}  {entry['time_s']:.1f} s  "
        f"loss {entry['total']:.4f}  "
        f"val mIoU {entry['miou']:.4f} (best {best_miou:.4f})"
    )


def format_result(
    student: dict, baseline: dict | None, teacher_ious: list | None, *, report: Path
) -> str:
    """A table of IoU by class with mIoU below, the difference from the baseline, and the cost.

    Args:
        student, baseline: contents of result.json; the baseline is None if there is none.
        teacher_ious: one per class, 0 to 1, or None if they are unknown. report: its file.
    """
    columns = {"teacher": teacher_ious} if teacher_ious else {}
    columns |= {"baseline": list(baseline["per_class_iou"].values())} if baseline else {}
    columns["student"] = list(student["per_class_iou"].values())
    names = list(student["per_class_iou"])
    mious = {
        "teacher": student["teacher_miou"],
        "baseline": student["baseline_miou"],
        "student": student["miou"],
    }
    rows = [["IoU", *columns]]
    rows += [
        [name, *(format_share(ious[row]) for ious in columns.values())]
        for row, name in enumerate(names)
    ]
    rows.append(["mIoU", *(format_share(mious[who]) for who in columns)])
    width = max(12, *map(len, names))
    lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    return join_lines([*lines, *_format_gain(student, report)])


def _format_gain(student: dict, report: Path) -> list[str]:
    lines = []
    if student["improvement_points"] is not None:
        percent = student["improvement_percent"]
        relative = "" if percent is None else f" ({percent:+.1f} %)"
        points = f"{student['improvement_points']:+.2f} points{relative}"
        lines.append(f"student - baseline: {points}, best epoch of each, one seed")
    cost = f"{student['epochs']} epochs in {student['seconds']:.0f} s"
    return [*lines, f"{student['params']:,} parameters, {cost}; report: {report}"]


def _find_wait(entry: dict) -> float:
    """Share of the training time that the host waited for data, 0 to 1."""
    return entry["data_wait_s"] / max(entry["time_s"] - entry["validation_s"], 1e-9)
