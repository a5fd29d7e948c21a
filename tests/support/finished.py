"""Folders of finished runs, written by hand: what a comparison reads of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from kdcache.seals import seal_json

HYPERPARAMETERS = {
    "student.arch": "mobilenetv3_small",
    "student.pretrained": False,
    "student.aspp_channels": 96,
    "student.options": {},
    "loss.alpha": 1.0,
    "loss.beta": 0.5,
    "loss.gamma": 0.3,
    "loss.temperature": 4.0,
    "train.epochs": 30,
    "train.batch_size": 8,
    "train.lr": 0.001,
    "train.seed": 0,
    "train.views": "cycle",
    "train.flip": 0.0,
    "train.crop": None,
    "train.precision": "float32",
    "train.compile": "off",
    "augment.views": 4,
    "cache.levels": ["low", "mid", "high"],
}
LABELS_ONLY = {"loss.beta": 0.0, "loss.gamma": 0.0, "cache.levels": []}
CACHE, PICTURES, VALIDATION = "c" * 64, "b" * 64, "a" * 64
OLDER = (
    "pictures_identity",
    "validation_identity",
    "device_type",
    "processes",
)  # what result.json did not say before


def write_run(
    folder: Path,
    miou: float,
    *,
    last: float | None = None,
    ious: dict | None = None,
    seed: int = 0,
    settings: dict | None = None,
    older: bool = False,
    epoch_s: float = 10.0,
    **result: object,
) -> Path:
    """A folder with config.yaml, metrics.jsonl and result.json.

    Args:
        miou, last: of the best and of the last epoch. ious: by class. settings: hyperparameters by
            dotted name.
        older: without OLDER and without seals. result: other contents of result.json.
    """
    facts = {**HYPERPARAMETERS, **(settings or {}), "train.seed": seed}
    taught = facts["loss.beta"] or facts["loss.gamma"]
    contents = {
        "miou": miou,
        "last_miou": miou - 0.01 if last is None else last,
        "best_epoch": 7,
        "per_class_iou": ious or {"sky": miou + 0.1, "road": miou - 0.1},
        "hyperparameters": facts,
        "cache_identity": CACHE if taught else PICTURES,
        "pictures_identity": PICTURES,
        "validation_identity": VALIDATION,
        "device_type": "cpu",
        "processes": [1],
    }
    contents |= result
    contents = {name: value for name, value in contents.items() if not (older and name in OLDER)}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"cache": {"encoding": "half"}}))
    lines = [{"time_s": epoch_s + 2 + slow, "validation_s": 2.0} for slow in (5.0, 0.0, 0.0)]
    metrics = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(metrics)
    sealed = {"sealed": {"metrics.jsonl": hashlib.sha256(metrics.encode()).hexdigest()}}
    written = json.dumps(contents).encode() if older else seal_json(contents | sealed)
    (folder / "result.json").write_bytes(written)
    return folder


def write_baseline(folder: Path, miou: float, **options: object) -> Path:
    """A run with labels only."""
    return write_run(
        folder, miou, **{**options, "settings": {**(options.get("settings") or {}), **LABELS_ONLY}}
    )


def write_three_seeds(root: Path) -> Path:
    """Baselines 0.50, 0.52, 0.51 and students 0.51, 0.55, 0.53: differences of 1, 3 and 2 points;
    last epochs 0, 2 and 1.
    """
    for seed, (base, own) in enumerate([(0.50, 0.51), (0.52, 0.55), (0.51, 0.53)]):
        write_baseline(root / f"b{seed}", base, seed=seed)
        write_run(root / f"s{seed}", own, last=own - 0.02, seed=seed)
    return root
