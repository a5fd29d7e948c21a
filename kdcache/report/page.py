"""The report of a training run: one HTML file that needs nothing else, no script, no network."""

from __future__ import annotations

from html import escape
from pathlib import Path

from kdcache.config import Config, config_to_dict
from kdcache.report.curves import Curve, draw_chart
from kdcache.report.panels import NUM_SCANNED, Panel, Predictor, build_panels
from kdcache.report.pictures import class_map_uri, photo_uri
from kdcache.report.style import CSS
from kdcache.report.tables import draw_class_table, draw_facts, draw_swatch, format_share
from kdcache.settings import flatten
from kdcache.training.checkpoint import BEST
from kdcache.training.folder import read_history, read_result
from kdcache.training.run import Data

REPORT = "report.html"
COARSE_PX = 256  # smaller pictures are enlarged pixel by pixel, larger ones smoothly reduced
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(config: Config, data: Data, *, folder: Path, baseline_folder: Path | None, result: dict) -> Path:
    """Write the report of a finished run into its folder.

    Args:
        config: resolved settings of the run.
        data: the opened cache it was trained from.
        folder: the run's folder, with its best checkpoint and metrics.
        baseline_folder: the same of its baseline, if there is one.
        result: contents of the run's result.json.

    Returns: the file. Raises: TrainingError for a damaged checkpoint, CacheCorruptError.
    """
    baseline = read_result(baseline_folder) if baseline_folder else None
    histories = {"baseline": read_history(baseline_folder)} if baseline_folder else {}
    histories["student"] = read_history(folder)
    ask_student, ask_baseline = Predictor(config, folder / BEST), _find_baseline(config, baseline_folder)
    parts = [
        _headline(folder.name, result),
        _curves(config, histories, result, baseline),
        _classes(config, data, result, baseline),
        _samples(config, data, build_panels(data.val, student=ask_student, baseline=ask_baseline)),
        _facts(config, data, result, baseline),
    ]
    path = folder / REPORT
    partial = path.with_name(f"{REPORT}.partial")
    partial.write_text(_document(folder.name, parts), encoding="utf-8")
    partial.replace(path)
    return path


def _find_baseline(config: Config, baseline_folder: Path | None) -> Predictor | None:
    """The baseline, unless its checkpoint was thrown away: its numbers alone are enough to reuse it."""
    there = baseline_folder and (baseline_folder / BEST).is_file()
    return Predictor(config, baseline_folder / BEST) if there else None


def _document(title: str, parts: list[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - kdcache</title>\n<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _headline(name: str, result: dict) -> str:
    tiles = [_tile("teacher", format_share(result["teacher_miou"]), "asked once, cached")]
    compared = "No baseline was trained. "
    if result["baseline_miou"] is not None:
        tiles.append(_tile("baseline", format_share(result["baseline_miou"]), "labels only, equal budget"))
        compared = "Difference: student - baseline, the best epoch of each, chosen on val. "
    best = f"best epoch, {result['best_epoch']} of {result['epochs']}"
    tiles.append(_tile("student", format_share(result["miou"]), best))
    if result["improvement_points"] is not None:
        percent = result["improvement_percent"]
        relative = "" if percent is None else f"{percent:+.1f} % of the baseline"
        tiles.append(_tile("difference", f"{result['improvement_points']:+.2f} points", relative))
    return (
        f"<header><h1>{escape(name)}</h1>"
        f'<div class="soft">mIoU on the validation split, 0 to 1; a point is 0.01</div>'
        f'<div class="tiles">{"".join(tiles)}</div><p class="soft">{compared}One seed; differences '
        "of the size of the spread between seeds mean nothing.</p></header>"
    )


def _tile(title: str, value: str, note: str) -> str:
    return f'<div class="tile {title}">{title}<b>{value}</b><small>{note}</small></div>'


def _curves(config: Config, histories: dict[str, list[dict]], result: dict, baseline: dict | None) -> str:
    best = {"student": result["best_epoch"], "baseline": baseline and baseline["best_epoch"]}
    miou = [Curve(who, [e["miou"] for e in history], best[who]) for who, history in histories.items()]
    level = result["teacher_miou"]
    kinds = [*([] if level is None else ["teacher"]), *histories]
    key = "".join(f'<li><i class="{kind}"></i>{kind}</li>' for kind in kinds)
    return (
        f'<section><h2>Over the epochs</h2><ul class="key">{key}</ul>'
        + draw_chart("val mIoU", "large dot: best epoch", miou, height_px=260, level=level)
        + f'<div class="multiples">{"".join(_loss_charts(config, histories))}</div></section>'
    )


def _loss_charts(config: Config, histories: dict[str, list[dict]]) -> list[str]:
    """A chart a term of the student's loss; of the baseline, only cross-entropy is the same quantity."""
    terms = {
        "ce": ("cross-entropy", f"with the labels, weight {config.loss.alpha:g}"),
        "kd": ("KD divergence", f"from the teacher, x T\u00b2, weight {config.loss.beta:g}"),
        "feature": ("feature distance", f"mean over levels, weight {config.loss.gamma:g}"),
        "total": ("total", "weighted sum"),
    }
    charts = []
    for term in [term for term in terms if term in histories["student"][0]]:
        shown = [who for who in histories if who == "student" or term == "ce"]
        curves = [Curve(who, [entry[term] for entry in histories[who]]) for who in shown]
        charts.append(draw_chart(*terms[term], curves, height_px=130))
    return charts


def _classes(config: Config, data: Data, result: dict, baseline: dict | None) -> str:
    ious = {
        "teacher": data.manifest.information.get("teacher_per_class_iou"),
        "baseline": baseline and list(baseline["per_class_iou"].values()),
        "student": list(result["per_class_iou"].values()),
    }
    ious = {who: values for who, values in ious.items() if values}
    mious = {
        "teacher": result["teacher_miou"],
        "baseline": result["baseline_miou"],
        "student": result["miou"],
    }
    absent = any(iou is None for values in ious.values() for iou in values)
    note = "-: the class is in neither labels nor predictions and does not count." if absent else ""
    return (
        f"<section><h2>IoU of each class</h2>{draw_class_table(config.dataset.names, ious, mious)}"
        f'<p class="soft">{note}</p></section>'
    )


def _samples(config: Config, data: Data, panels: list[Panel]) -> str:
    names, total = config.dataset.names, data.val.layout.num_samples
    legend = "".join(f"<li>{draw_swatch(number)}{escape(name)}</li>" for number, name in enumerate(names))
    scanned = f" among {NUM_SCANNED} evenly spaced ones" if total > NUM_SCANNED else ""
    return (
        f'<section><h2>Validation samples</h2><p class="soft">{len(panels)} of {total}: those{scanned} '
        "on which student and teacher differ most, then those on which they differ least.</p>"
        f'<ul class="legend">{legend}<li><span class="swatch void"></span>void, not counted</li></ul>'
        f"{''.join(map(_panel, panels))}</section>"
    )


def _panel(panel: Panel) -> str:
    name = escape(panel.sample_id)
    uris = {"image": photo_uri(panel.image)}
    uris |= {title: class_map_uri(classes) for title, classes in panel.maps.items()}
    coarse = ' class="coarse"' if max(panel.image.shape) < COARSE_PX else ""
    figures = "".join(
        f'<figure><img{coarse} src="{uri}" alt="{title} of {name}"><figcaption>{title}</figcaption></figure>'
        for title, uri in uris.items()
    )
    share = f"student and teacher differ on {100 * panel.disagreement:.1f} % of the pixels"
    return (
        f'<div class="panel"><h3>{name} <small>{share}</small></h3>'
        f'<div class="pictures" style="--columns:{len(uris)}">{figures}</div></div>'
    )


def _facts(config: Config, data: Data, result: dict, baseline: dict | None) -> str:
    manifest = data.manifest
    facts = {"student": _describe_time(result)} | ({"baseline": _describe_time(baseline)} if baseline else {})
    facts |= {
        "parameters": f"{result['params']:,}",
        "cache": data.val.root,
        "identity": manifest.identity_hash,
    }
    for split, layout in manifest.layouts.items():
        facts[split] = f"{layout.num_samples} samples x {layout.num_views} views"
    written = {name: manifest.information.get(name) for name in ("versions", "device", "num_threads")}
    hidden = {
        "Settings": flatten(config_to_dict(config)),
        "Cache identity": flatten(manifest.identity),
        "Versions and device the cache was written with": flatten(written),
    }
    details = (f"<details><summary>{title}</summary>{draw_facts(more)}</details>" for title, more in hidden.items())
    return f"<section><h2>The run</h2>{draw_facts(facts)}{''.join(details)}</section>"


def _describe_time(result: dict) -> str:
    seconds, epochs = result["seconds"], result["epochs"]
    return f"{epochs} epochs in {seconds:.0f} s, {seconds / epochs:.1f} s an epoch; best: {result['best_epoch']}"
