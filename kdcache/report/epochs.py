"""How a run and its baseline went, epoch by epoch, as HTML."""

from __future__ import annotations

from kdcache.config import Config
from kdcache.report.curves import Curve, draw_chart
from kdcache.report.finished import Finished


def draw_epochs(config: Config, runs: dict[str, Finished], teacher_miou: float | None) -> str:
    """The section: mIoU, each term of the loss, and the learning rate.

    Args:
        runs: "baseline", "student" (those there are).
    """
    mious = [
        Curve(who, [entry["miou"] for entry in run.history], run.result["best_epoch"])
        for who, run in runs.items()
    ]
    kinds = [*([] if teacher_miou is None else ["teacher"]), *runs]
    key = "".join(f'<li><i class="{kind}"></i>{kind}</li>' for kind in kinds)
    charts = [*_draw_losses(config, runs), *_draw_rate(config, runs["student"])]
    return (
        f'<section><h2>Over the epochs</h2><ul class="key">{key}</ul>'
        + draw_chart("val mIoU", "large dot: best epoch", mious, height_px=260, level=teacher_miou)
        + f'<div class="multiples">{"".join(charts)}</div></section>'
    )


def _draw_losses(config: Config, runs: dict[str, Finished]) -> list[str]:
    """A chart a term of the student's loss; of the baseline, only cross-entropy is the same quantity."""
    terms = {
        "ce": ("cross-entropy", f"with the labels, weight {config.loss.alpha:g}"),
        "kd": ("KD divergence", f"x T\u00b2, weight {config.loss.beta:g}"),
        "feature": ("feature distance", f"mean over levels, weight {config.loss.gamma:g}"),
        "total": ("total", "weighted sum"),
    }
    charts = []
    for term in [term for term in terms if term in runs["student"].history[0]]:
        shown = {who: run for who, run in runs.items() if who == "student" or term == "ce"}
        curves = [Curve(who, [entry[term] for entry in run.history]) for who, run in shown.items()]
        charts.append(draw_chart(*terms[term], curves, height_px=130))
    return charts


def _draw_rate(config: Config, student: Finished) -> list[str]:
    if not all("lr" in entry for entry in student.history):
        return []
    curve = Curve("student", [entry["lr"] / config.train.lr for entry in student.history])
    return [draw_chart("learning rate", f"share of {config.train.lr:g}", [curve], height_px=130)]
