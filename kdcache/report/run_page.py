"""The report of a training run: one HTML file that needs nothing else, no script, no network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdcache import disk
from kdcache.cache.manifest import read_manifest
from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.errors import Phrase, TrainingError, describe
from kdcache.models.own_code import Trust
from kdcache.report.classes import view_confusion
from kdcache.report.finished import Finished, read_finished, view_budget, view_facts
from kdcache.report.panels import NUM_PANELS, Panel, Predictor, build_panels, view_samples
from kdcache.report.template import Chart, Curve, build_chart, format_share, render_page
from kdcache.storage import open_storage
from kdcache.training.checkpoint import BEST
from kdcache.training.loop import plan_batches
from kdcache.training.run_folder import RESULT, SETTINGS, read_result, read_run_settings
from kdcache.training.run_identity import find_identity
from kdcache.training.samples import Data, open_configured
from kdcache.training.settings import resolve_config

REPORT = "report.html"
MOST_ROWS = 40  # above, a table of classes scrolls in a box


def write_report(
    config: Config,
    data: Data,
    *,
    folder: Path,
    baseline_folder: Path | None,
    num_panels: int = NUM_PANELS,
    trust: Trust | None = None,
) -> Path:
    """Write the report of a finished run into its folder.

    Args:
        config: resolved settings of the run. data: the opened cache it was trained from.
        folder: of the run, with its best checkpoint, metrics and result.
        baseline_folder: of its baseline, if there is one; its checkpoint may be gone.
        num_panels: how many validation samples are shown.
        trust: whether a student of the user's may be imported (default: no).

    Returns: the file. Raises: TrainingError if a checkpoint is damaged, CacheCorruptError,
        SettingsError.
    """
    folders = {"baseline": baseline_folder, "student": folder}
    runs = {who: read_finished(path) for who, path in folders.items() if path}
    panels = _build_panels(config, data, runs, num_panels, trust=trust)
    html = render_page("run.html.j2", **view_run(config, data, runs, panels))
    # names of folders may hold bytes that are no text
    disk.replace_file(folder / REPORT, html.encode("utf-8", "backslashreplace"))
    return folder / REPORT


def rewrite_report(
    folder: Path, given: dict | None = None, *, num_panels: int, trust: Trust | None = None
) -> Path:
    """Write report.html of a finished run again, with more panels or by a newer version.

    Args:
        folder: of the run.
        given: nested settings that differ from the run's: where its cache is now, another device.
        num_panels: how many validation samples are shown.
        trust: whether a student of the user's that the run names may be imported (default: no).

    Returns: the file. Raises: TrainingError if the run is not finished or damaged, CacheError if
        its cache is gone or another one, SettingsError.
    """
    _check_finished(folder)
    result = read_result(folder)
    config, data = _open_run(folder, given or {}, result)
    folders = {"folder": folder, "baseline_folder": find_baseline_folder(folder, result)}
    return write_report(config, data, **folders, num_panels=num_panels, trust=trust)


def find_baseline_folder(folder: Path, result: dict) -> Path | None:
    """The folder of the baseline that a run was compared with; None if there is none any more."""
    baseline = result.get("baseline")
    return folder / baseline if baseline and (folder / baseline / RESULT).is_file() else None


def _check_finished(folder: Path) -> None:
    """Raises TrainingError if the folder is not that of a finished run."""
    if not (folder / SETTINGS).is_file():
        found = Phrase("of no run" if folder.exists() else "missing")
        cure = "give run.dir of a training"
    elif not (folder / RESULT).is_file():
        found = Phrase("unfinished")
        cure = "finish it with --run.resume, or wait for its end"
    else:
        return
    expected = Phrase("the folder of a finished run")
    raise TrainingError(
        describe(folder, field="run folder", found=found, expected=expected, cure=cure)
    )


def _open_run(folder: Path, given: dict, result: dict) -> tuple[Config, Data]:
    """The settings of the run and its cache. Raises TrainingError if either is another one."""
    stored = read_run_settings(folder)
    stored.pop("teacher", None)  # not asked here; hashing its weights again would take seconds
    given = merge(stored, given)
    root = open_storage(make_config(given).cache.path)
    manifest = read_manifest(root)
    config = resolve_config(root, manifest, given)
    found, expected = find_identity(manifest, result["hyperparameters"]), result["cache_identity"]
    if found != expected:
        facts = {"field": "cache identity", "found": found[:12], "expected": expected[:12]}
        cure = "give the cache of this run by --cache.path"
        raise TrainingError(describe(root, **facts, cure=cure))
    if list(result.get("per_class_iou", config.dataset.names)) != config.dataset.names:
        found, expected = Phrase("another one"), Phrase(f"that of {SETTINGS}")
        facts = {"field": "list of classes", "found": found, "expected": expected}
        raise TrainingError(describe(folder / RESULT, **facts, cure=f"make {SETTINGS} what it was"))
    # a stage is a folder to write into, and these settings may be a stranger's
    unstaged = replace(config, cache=replace(config.cache, stage_dir=None))
    return config, open_configured(unstaged, root, manifest)


def _build_panels(
    config: Config, data: Data, runs: dict[str, Finished], num_panels: int, *, trust: Trust | None
) -> list[Panel]:
    """A baseline without its checkpoint has no pictures: its numbers are enough to reuse it."""
    asked = {
        who: Predictor(config, run.folder / BEST, trust=trust)
        for who, run in runs.items()
        if who == "student" or run.confusion_KK is not None
    }
    student, baseline = asked["student"], asked.get("baseline")
    return build_panels(data.val, student=student, baseline=baseline, num_panels=num_panels)


def view_run(config: Config, data: Data, runs: dict[str, Finished], panels: list[Panel]) -> dict:
    """What the page shows. Args: runs: "baseline", "student" (those there are)."""
    student, names, layouts = runs["student"], config.dataset.names, data.manifest.listed
    teacher_ious = data.manifest.information.get("teacher_per_class_iou")
    ious = {"teacher": teacher_ious} if teacher_ious else {}
    ious |= {who: run.ious for who, run in runs.items()}
    batches = plan_batches(config, data.samples, epoch=1)  # of each run, and of each epoch as many
    return {
        "title": student.folder.resolve().name,
        "headline": view_headline(student, runs.get("baseline")),
        "epochs": view_epochs(config, runs, student.result["teacher_miou"]),
        "classes": view_classes(names, ious, _find_mious(student)),
        "confusion": view_confusion(names, student, runs.get("baseline")),
        "samples": view_samples(names, panels, total=layouts["val"].num_samples),
        "budget": view_budget(runs, num_samples=sum(map(len, batches))),
        "facts": view_facts(config, data, runs),
    }


def view_headline(student: Finished, baseline: Finished | None) -> dict:
    """Tiles with the mIoU of teacher, baseline and student."""
    result, mious = student.result, _find_mious(student)
    has_baseline = mious["baseline"] is not None
    notes = {"teacher": "asked once, cached"}
    notes |= {"baseline": "labels only, equal budget"} if has_baseline else {}
    notes["student"] = f"best epoch, {result['best_epoch']} of {result['epochs']}"
    tiles = [_make_tile(who, format_share(mious[who]), note) for who, note in notes.items()]
    if result["improvement_points"] is not None:
        percent = result["improvement_percent"]
        relative = "" if percent is None else f"{percent:+.1f} % of the baseline"
        points = f"{result['improvement_points']:+.2f} points"
        tiles.append(_make_tile("difference", points, relative))
    return {"tiles": tiles, "has_baseline": has_baseline, "is_baseline_there": bool(baseline)}


def _find_mious(student: Finished) -> dict[str, float | None]:
    result = student.result
    names = {"teacher": "teacher_miou", "baseline": "baseline_miou", "student": "miou"}
    return {who: result[name] for who, name in names.items()}


def _make_tile(title: str, value: str, note: str) -> dict:
    return {"kind": title, "title": title, "value": value, "note": note}


def view_classes(names: list[str], ious: dict[str, list], mious: dict[str, float | None]) -> dict:
    """The table of classes.

    Args:
        names: one per class.
        ious: "teacher", "baseline", "student" (those there are) -> IoU per class, 0 to 1, or None.
        mious: the same -> mIoU or None.
    """
    is_compared = "baseline" in ious
    rows = []
    for number, name in enumerate(names):
        own = {who: values[number] for who, values in ious.items()}
        points = _format_points(own["student"], own["baseline"]) if is_compared else None
        rows.append({"number": number, "name": name, "ious": own, "points": points})
    foot = _format_points(mious["student"], mious["baseline"]) if is_compared else None
    return {
        "who": list(ious),
        "rows": rows,
        "mious": {who: mious[who] for who in ious},
        "points": foot,
        "scrolls": len(names) > MOST_ROWS,
        "has_absent": any(iou is None for values in ious.values() for iou in values),
    }


def _format_points(value: float | None, base: float | None) -> str:
    return "-" if value is None or base is None else f"{100 * (value - base):+.2f}"


def view_epochs(config: Config, runs: dict[str, Finished], teacher_miou: float | None) -> dict:
    """Charts over the epochs: mIoU, each term of the loss, and the learning rate."""
    mious = [
        Curve(who, [entry["miou"] for entry in run.history], run.result["best_epoch"])
        for who, run in runs.items()
    ]
    note = "large dot: best epoch"
    return {
        "kinds": [*([] if teacher_miou is None else ["teacher"]), *runs],
        "miou": build_chart("val mIoU", note, mious, height_px=260, level=teacher_miou),
        "charts": [*_chart_losses(config, runs), *_chart_rate(config, runs["student"])],
    }


def _chart_losses(config: Config, runs: dict[str, Finished]) -> list[Chart]:
    """A chart per term of the student's loss; only the baseline's cross-entropy is comparable."""
    terms = {
        "ce": ("cross-entropy", f"with the labels, weight {config.loss.alpha:g}"),
        "pseudo": ("teacher's class", f"images without a label, weight {config.loss.pseudo:g}"),
        "kd": ("KD divergence", f"x T\u00b2, weight {config.loss.beta:g}"),
        "feature": ("feature distance", f"mean over levels, weight {config.loss.gamma:g}"),
        "total": ("total", "weighted sum"),
    }
    charts = []
    for term in [term for term in terms if runs["student"].has(term)]:
        shown = {who: run for who, run in runs.items() if who == "student" or term == "ce"}
        shown = {who: run for who, run in shown.items() if run.has(term)}
        curves = [Curve(who, [entry[term] for entry in run.history]) for who, run in shown.items()]
        charts.append(build_chart(*terms[term], curves, height_px=130))
    return charts


def _chart_rate(config: Config, student: Finished) -> list[Chart]:
    if not student.has("lr"):
        return []
    curve = Curve("student", [entry["lr"] / config.train.lr for entry in student.history])
    return [build_chart("learning rate", f"share of {config.train.lr:g}", [curve], height_px=130)]
