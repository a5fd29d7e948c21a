"""The files of a run folder that are text, and the fields of them and of checkpoints.

Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from pathlib import Path

from kdcache import disk, seals
from kdcache.cache.facts import MACHINE, SHARE
from kdcache.config import Config, config_to_dict
from kdcache.config.names import BUILT_IN_STUDENT, REMOVED, TERMS, check_removed
from kdcache.config.parser import flatten, make_config, read_stored
from kdcache.config.yaml_file import dump_yaml, read_settings_file
from kdcache.disk import MOST_DOCUMENT_BYTES, open_stream, read_plain
from kdcache.errors import SettingsError, TrainingError, find_cure, one_line
from kdcache.schema import (
    Kind,
    all_of,
    fields,
    flag,
    list_of,
    maybe,
    number,
    parse_json,
    plain,
    table_of,
    text,
    whole,
)
from kdcache.storage.lock import LOCK, FolderLock, hold_folder

_TIME = number(0, 1e12)
_ANY = number(-1e30, 1e30)
_ORIGIN = {
    "pictures_identity": maybe(text()),
    "validation_identity": maybe(text()),
    "unlabelled_samples": whole(1),
    "source_sha256": text(),
}
IOUS = list_of(maybe(SHARE), most=254)

HYPERPARAMETERS: Kind = all_of(
    plain,
    fields(
        {"loss.beta": _ANY, "loss.gamma": _ANY},
        {
            **dict.fromkeys(("loss.alpha", "loss.pseudo"), _ANY),
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
        "compiled": flag,
        "processes": list_of(whole(1), most=100_000),
        **dict.fromkeys(("baseline_miou", "teacher_miou"), maybe(SHARE)),
        "last_miou": SHARE,
        "baseline": maybe(text()),
        **dict.fromkeys(("improvement_points", "improvement_percent"), maybe(_ANY)),
        "per_class_iou": table_of(maybe(SHARE)),
        **dict.fromkeys(("params", "epochs", "best_epoch"), whole(1)),
        "seconds": _TIME,
        "sealed": fields({"metrics.jsonl": text("[0-9a-f]{64}")}),
    },
)
_TIMES = dict.fromkeys(("step_s", "data_wait_s", "validation_s", "time_s"), _TIME)
_LOSSES = dict.fromkeys(("total", "ce", "pseudo", "kd", "feature", "lr"), _ANY)
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
_CURE = f"restore it from a copy, or delete {RESULT} and finish the run again with --run.resume"
_OLDER = "use the kdcache that trained it, or train again without it"
TEACHING = tuple(f"loss.{weight}" for term, weight in TERMS.items() if term != "ce")
"""Weights of the terms that need the teacher; a baseline has none above 0."""
BEFORE = {
    "loss.pseudo": 0.0,
    "loss.pseudo_threshold": 0.0,
    "train.compile": "off",
    "train.views": "cycle",
    "train.flip": 0.0,
    "train.crop": None,
    "train.unlabelled_share": None,
    "student.arch": BUILT_IN_STUDENT,
    "student.options": {},
    "student.backbone_weights": None,
}
"""Hyperparameters that older runs do not record, as they could not be set, and the values of then.

A new setting of student, loss or train has an entry: then runs of before can be resumed and
compared, and their baselines are found.
"""


_UNFINISHED = re.compile(r"(.*?)(\.[0-9a-f]{8})?\.partial")


class HeldFolder(ExitStack):
    """A run's folder while this process writes it, and whatever else ends with that."""

    def __init__(self) -> None:
        super().__init__()
        self.lock: FolderLock | None = None

    def take(self, folder: Path, *, wait: bool) -> None:
        """Lock an existing folder. Raises FolderInUseError, OSError."""
        self.lock = self.enter_context(hold_folder(folder, wait=wait))

    def check(self) -> None:
        """Raise LockLostError if the lock was removed; to be called before each write."""
        if self.lock is not None:
            self.lock.check()


def is_unused(folder: Path) -> bool:
    """Whether a folder has no more than a run leaves that was killed before it had settings.

    Raises OSError.
    """
    names = {entry.name for entry in folder.iterdir()} - {LOCK}
    return all(_find_finished_name(name) == SETTINGS for name in names)


def _find_finished_name(unfinished: str) -> str | None:
    match = _UNFINISHED.fullmatch(unfinished)
    return match[1] if match else None


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of a run's files; its lock must be held. Raises OSError."""
    for entry in folder.iterdir():
        if _find_finished_name(entry.name) in (SETTINGS, METRICS, RESULT, BEST, LAST):
            disk.remove(entry)


def drop_removed(facts: dict, *, where: Path) -> dict:
    """Hyperparameters of a run without settings that were removed since.

    Raises: TrainingError if one of them was in use.
    """
    check_removed(facts, where=where, cure=_OLDER, kind=TrainingError)
    return {name: value for name, value in facts.items() if name not in REMOVED}


class DamagedHistoryError(TrainingError):
    """metrics.jsonl is there and is not what was sealed."""


def write_settings(folder: Path, config: Config) -> None:
    """Write config.yaml into an existing folder."""
    disk.replace_file(folder / SETTINGS, dump_yaml(config_to_dict(config)).encode())


def read_run_settings(folder: Path) -> dict:
    """The settings in config.yaml, as nested sections, without names this version does not have.

    Raises: SettingsError if the file is missing, damaged, or holds values that are not allowed.
    """
    path = folder / SETTINGS
    stored = read_settings_file(path)
    check_removed(flatten(stored), where=path, cure=_OLDER)
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
    """Write result.json, sealed; with it a run is finished."""
    sealed = seals.FIELD in result  # one of before stays so: nobody has looked at its other files
    text = seals.seal_json(result) if sealed else json.dumps(result, indent=1).encode()
    disk.replace_file(folder / RESULT, text)


def read_result(folder: Path) -> dict:
    """The contents of result.json, without its seal.

    Raises: TrainingError if it is missing or damaged.
    """
    path = folder / RESULT
    try:
        data = read_plain(path, most_bytes=MOST_DOCUMENT_BYTES, follow=False)
        is_sealed = seals.has_json_seal(data)
        if is_sealed:
            seals.check_json(data)
        result = parse_json(data)
        RESULT_FIELDS(result)
        if not is_sealed and (seals.FIELD in result or _has_sealed_checkpoint(folder)):
            raise seals.SealError(seals.NO_JSON_SEAL)
        if not is_sealed:
            seals.tell_unsealed(path)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "result", error) from None
    facts = drop_removed(result["hyperparameters"], where=path)
    kept = {name: value for name, value in result.items() if name != "sha256"}
    return kept | {"hyperparameters": facts}


def _has_sealed_checkpoint(folder: Path) -> bool:
    """Whether the run is of a version that seals its files. Raises OSError."""
    for path in (folder / BEST, folder / LAST):
        if path.is_file():
            with open_stream(path, follow=False) as file:
                if seals.has_archive_seal(file):
                    return True
    return False


def is_finished(folder: Path) -> bool:
    """Whether the folder has a result."""
    return (folder / RESULT).is_file()


def write_history(folder: Path, history: list[dict]) -> None:
    """Write metrics.jsonl, a line per epoch; written whole, so that no epoch is in it twice."""
    disk.replace_file(folder / METRICS, _format_history(history))


def seal_files(history: list[dict]) -> dict[str, str]:
    """For the field `sealed` of a result: the sha256 of metrics.jsonl, by name."""
    return {METRICS: hashlib.sha256(_format_history(history)).hexdigest()}


def read_history(folder: Path, result: dict, *, entry: Kind = EPOCH) -> list[dict]:
    """The entries of metrics.jsonl, one per epoch, compared with the seal in the result.

    Args:
        result: of the run. entry: what each of them must be.

    Raises: TrainingError if it is missing or unreadable; DamagedHistoryError, which is one, if it
    is not what was sealed.
    """
    path = folder / METRICS
    try:
        data = read_plain(path, most_bytes=MOST_DOCUMENT_BYTES, follow=False)
        if seals.FIELD in result:
            found = hashlib.sha256(data).hexdigest()
            seals.compare_digests(found, result[seals.FIELD][METRICS])
        history = [parse_json(line) for line in data.decode().splitlines()]
        list_of(entry, least=1)(history)
        return history
    except seals.SealError as error:
        raise _unreadable(path, "history", error, kind=DamagedHistoryError) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, "history", error) from None


def _format_history(history: list[dict]) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in history).encode()


def _unreadable(
    path: Path, field: str, error: Exception, *, kind: type[TrainingError] = TrainingError
) -> TrainingError:
    reason, cure = one_line(error), find_cure(error, _CURE)
    return kind(f"{path}: {field} is unreadable ({reason}); {cure}")
