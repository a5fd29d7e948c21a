"""The files of a run folder that are text, and the fields of them and of checkpoints.

Nothing here needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from kdcache import disk
from kdcache.cache.facts import MACHINE, SHARE
from kdcache.config import Config, config_to_dict
from kdcache.config.names import BUILT_IN_STUDENT, TERMS
from kdcache.config.parser import make_config, read_stored
from kdcache.config.yaml_file import read_settings_file
from kdcache.disk import MOST_DOCUMENT_BYTES, read_text
from kdcache.errors import SettingsError, TrainingError, one_line
from kdcache.schema import (
    Kind,
    all_of,
    fields,
    list_of,
    maybe,
    number,
    parse_json,
    plain,
    table_of,
    text,
    whole,
)

_TIME = number(0, 1e12)
_ANY = number(-1e30, 1e30)
_ORIGIN = {
    "pictures_identity": maybe(text()),
    "validation_identity": maybe(text()),
    "unlabelled_samples": whole(1),
}
IOUS = list_of(maybe(SHARE), most=254)

HYPERPARAMETERS: Kind = all_of(
    plain,
    fields(
        {"loss.beta": _ANY, "loss.gamma": _ANY},
        {
            **dict.fromkeys(("loss.alpha", "loss.pseudo", "loss.channel"), _ANY),
            "train.seed": whole(),
            "train.unlabelled_share": maybe(SHARE),
            "student.options": table_of(plain),
        },
    ),
)
"""Settings that decided the numbers, by dotted name; an older kdcache has fewer."""

RESULT_FIELDS: Kind = fields(
    {"hyperparameters": HYPERPARAMETERS, "cache_identity": text(), "miou": SHARE},
    {
        **_ORIGIN,
        **MACHINE,
        "device_type": text(),
        "processes": list_of(whole(1), most=100_000),
        **dict.fromkeys(("baseline_miou", "teacher_miou"), maybe(SHARE)),
        "last_miou": SHARE,
        "baseline": maybe(text()),
        **dict.fromkeys(("improvement_points", "improvement_percent"), maybe(_ANY)),
        "per_class_iou": table_of(maybe(SHARE)),
        **dict.fromkeys(("params", "epochs", "best_epoch"), whole(1)),
        "seconds": _TIME,
    },
)
_TIMES = dict.fromkeys(("step_s", "data_wait_s", "validation_s", "time_s"), _TIME)
_LOSSES = dict.fromkeys(("total", "ce", "pseudo", "kd", "channel", "feature", "lr"), _ANY)
_OTHERS = {"epoch": whole(1), "processes": whole(1), "per_class_iou": IOUS}
EPOCH: Kind = fields(
    {"miou": SHARE, "total": _ANY, "time_s": _TIME}, {**_TIMES, **_LOSSES, **_OTHERS}
)
"""A line of metrics.jsonl."""
EPOCH_TIMES: Kind = fields({"time_s": _TIME, "validation_s": _TIME})
"""All that a comparison reads of a line."""

FACTS: Kind = fields(
    {
        "hyperparameters": HYPERPARAMETERS,
        "cache_identity": text(),
        "history": list_of(EPOCH, least=1),
    },
    {**_ORIGIN, "epoch": whole(1), "miou": SHARE, "baseline_miou": maybe(SHARE)},
)
"""What a checkpoint has beside tensors."""


SETTINGS, METRICS, RESULT = "config.yaml", "metrics.jsonl", "result.json"
BEST, LAST = "student_kd_best.pth", "student_kd_last.pth"
TEACHING = tuple(f"loss.{weight}" for term, weight in TERMS.items() if term != "ce")
"""Weights of the terms that need the teacher; a baseline has none above 0."""
BEFORE = {
    "loss.pseudo": 0.0,
    "loss.pseudo_threshold": 0.0,
    "loss.channel": 0.0,
    "loss.channel_temperature": 1.0,
    "loss.project": "teacher",
    "train.compile": "off",
    "train.views": "cycle",
    "train.flip": 0.0,
    "train.crop": None,
    "train.unlabelled_share": None,
    "student.arch": BUILT_IN_STUDENT,
    "student.options": {},
}
"""Hyperparameters that older runs do not record, as they could not be set, and the values of then.

A new setting of student, loss or train has an entry: then runs of before can be resumed and
compared, and their baselines are found.
"""


def write_settings(folder: Path, config: Config) -> None:
    """Write config.yaml into an existing folder."""
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False)
    disk.replace_file(folder / SETTINGS, text.encode())


def read_run_settings(folder: Path) -> dict:
    """The settings in config.yaml, as nested sections, without names this version does not have.

    Raises: SettingsError if the file is missing, damaged, or holds values that are not allowed.
    """
    path = folder / SETTINGS
    stored = read_settings_file(path)
    try:
        values = read_stored(stored)
        make_config(values)
    except SettingsError as error:
        reason = one_line(error)
        raise SettingsError(
            f"{path}: settings are unreadable ({reason}); restore the file"
        ) from None
    return values


def write_result(folder: Path, result: dict) -> None:
    """Write result.json; with it a run is finished."""
    disk.replace_file(folder / RESULT, json.dumps(result, indent=1, allow_nan=False).encode())


def read_result(folder: Path) -> dict:
    """The contents of result.json. Raises TrainingError if it is missing or damaged."""
    try:
        result = parse_json(_read_text(folder / RESULT))
        RESULT_FIELDS(result)
        return result
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder / RESULT, "result", error) from None


def is_finished(folder: Path) -> bool:
    """Whether the folder has a result."""
    return (folder / RESULT).is_file()


def write_history(folder: Path, history: list[dict]) -> None:
    """Write metrics.jsonl, a line per epoch; written whole, so that no epoch is in it twice."""
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    disk.replace_file(folder / METRICS, lines.encode())


def read_history(folder: Path, *, entry: Kind = EPOCH) -> list[dict]:
    """The entries of metrics.jsonl, one per epoch. Raises TrainingError if missing or damaged.

    Args:
        entry: what each of them must be.
    """
    path = folder / METRICS
    try:
        history = [parse_json(line) for line in _read_text(path).splitlines()]
        list_of(entry, least=1)(history)
        return history
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "history", error) from None


def _read_text(path: Path) -> str:
    return read_text(path, most_bytes=MOST_DOCUMENT_BYTES, follow=False)


def _unreadable(path: Path, field: str, error: Exception) -> TrainingError:
    reason = one_line(error)
    cure = "delete the run folder and start again"
    return TrainingError(f"{path}: {field} is unreadable ({reason}); {cure}")
