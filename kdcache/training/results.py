"""What a run leaves in its folder: checkpoints and metrics.jsonl after each epoch, result.json at its end."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from kdcache.cache.manifest import Manifest
from kdcache.machine.versions import describe_machine
from kdcache.models.student import count_parameters
from kdcache.training.checkpoint import BEST, LAST, read_checkpoint, save_checkpoint
from kdcache.training.folder import find_origin, write_history, write_result
from kdcache.training.loop import Learner
from kdcache.training.plan import Plan


def save_epoch(
    learner: Learner, *, folder: Path, history: list[dict], facts: dict, confusion: Tensor
) -> None:
    """Write the checkpoints and metrics.jsonl after an epoch, the last of `history`.

    Args:
        facts: whose run it is. confusion: of this epoch, kept in the checkpoint of the best.
    """
    *before, last = history
    facts = {"epoch": len(history), "miou": last["miou"], **facts, "history": history}
    if all(last["miou"] > entry["miou"] for entry in before):
        save_checkpoint(folder / BEST, learner, facts={**facts, "confusion": confusion})
    save_checkpoint(folder / LAST, learner, facts=facts)
    write_history(folder, history)


def read_state(folder: Path, *, resume: bool) -> dict | None:
    """The last checkpoint, where there is one to go on from; metrics.jsonl is made to end with it. Raises TrainingError."""
    if not (resume and (folder / LAST).is_file()):
        return None
    state = read_checkpoint(folder / LAST)
    write_history(folder, state["history"])
    return state


def finish(plan: Plan, manifest: Manifest, learner: Learner, history: list[dict]) -> dict:
    """Write result.json, and return its contents; device and versions in it are those of the process that ended the run."""
    config, best = plan.config, max(history, key=lambda e: e["miou"])
    result = {
        "miou": best["miou"],
        **_compare(plan, best["miou"]),
        "teacher_miou": manifest.information.get("teacher_miou"),
        "per_class_iou": dict(zip(config.dataset.names, best["per_class_iou"], strict=True)),
        "params": count_parameters(learner.student),
        "epochs": len(history),
        "best_epoch": best["epoch"],
        "last_miou": history[-1]["miou"],
        "seconds": sum(e["time_s"] for e in history),
        **describe_machine(learner.device),
        "device_type": learner.device.type,
        "processes": sorted({e.get("processes", 1) for e in history}),
        **find_origin(config, manifest),
    }
    write_result(plan.folder, result)
    return result


def add_baseline(plan: Plan, result: dict) -> bool:
    """Write into the result of a finished run what its baseline says, where that was finished later; whether it was."""
    late = result["baseline_miou"] is None and plan.find_baseline_miou() is not None
    if late:
        result |= _compare(plan, result["miou"])
        write_result(plan.folder, result)
    return late


def _compare(plan: Plan, miou: float) -> dict:
    """The run beside its baseline; None where there is none, or it is not finished."""
    baseline_miou = plan.find_baseline_miou()
    gain = None if baseline_miou is None else miou - baseline_miou
    return {
        "baseline_miou": baseline_miou,
        "baseline": None if gain is None else os.path.relpath(plan.baseline, plan.folder),
        "improvement_points": None if gain is None else 100 * gain,
        "improvement_percent": 100 * gain / baseline_miou
        if gain is not None and baseline_miou
        else None,
    }
