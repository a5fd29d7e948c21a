"""Files of `fit`: the teacher, a state to go on from after a stop, and the lock of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from kdcache import disk, seals
from kdcache.config import Config, config_to_dict
from kdcache.config.caching import FOLDERS
from kdcache.config.names import IMAGENET_MEAN, IMAGENET_STD
from kdcache.config.parser import flatten
from kdcache.errors import (
    KdcacheError,
    Phrase,
    SettingsError,
    TrainingError,
    describe,
    find_cure,
    one_line,
    show_value,
)
from kdcache.machine.process import check_lock, lock_file, unlock_file
from kdcache.models.networks import hash_network
from kdcache.models.stored_state import OPTIMIZER, TENSORS, load_tensors, save_tensors
from kdcache.schema import FieldError, fields, list_of, maybe, number, plain, table_of, whole

STATE = fields(
    {
        "whose": table_of(plain),
        "epoch": whole(1),
        "history": list_of(
            fields({"epoch": whole(1), "loss": number(), "miou": maybe(number(0, 1))}), least=1
        ),
        "best": maybe(TENSORS),
        "model": TENSORS,
        "average": maybe(TENSORS),
        "optimizer": OPTIMIZER,
        "schedule": table_of(plain),
    }
)
BEFORE = {
    "teacher.weights_key": None,
    "teacher.backbone_weights": None,
    "teacher.options": {},
    "teacher.mean": list(IMAGENET_MEAN),
    "teacher.std": list(IMAGENET_STD),
    "teacher.source": None,
    "fit.backbone_lr": None,
    "fit.warmup": 0.1,
    "fit.patience": None,
}
"""What states of before do not say, and the values of then."""
NOT_WHOSE = (
    "dataset.root",
    *(f"dataset.{name}" for name in FOLDERS),  # as what they hold: by its hash
    "dataset.image_name",
    "dataset.mask_name",
    "dataset.label_folder",
    "dataset.val_fraction",
    "dataset.val_seed",
    "dataset.download",
    "dataset.unlabelled",
    "augment.views",
    "fit.out",
)
OF_TEACHER = ("arch", "options", "weights", "weights_key", "backbone_weights", "mean", "std")


class FileInUseError(KdcacheError):
    """Another process writes this file."""


@contextmanager
def hold_output(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of `fit.out` until the block ends; its folder is made if it is missing.

    Gives a function to call before each write: it raises LockLostError if the lock was removed.

    Raises: FileInUseError if another process holds it; SettingsError if `fit.out` cannot be
        written, before hours are spent.
    """
    lock = path.with_name(f"{path.name}.lock")
    descriptor = _lock_output(path, lock)
    if descriptor is None:
        raise FileInUseError(
            f"{path}: fit.out is in use by another process; wait for it or set another path"
        )
    try:
        yield lambda: check_lock(lock, descriptor)
    finally:
        unlock_file(lock, descriptor)


def _lock_output(path: Path, lock: Path) -> int | None:
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return lock_file(lock, wait=False)
    except OSError as error:
        raise SettingsError(
            f"{path}: fit.out is unwritable ({error.strerror}); set another path"
        ) from None


def save_teacher(path: Path, weights: Mapping[str, Tensor], config: Config, *, facts: dict) -> None:
    """Write a checkpoint that teacher.weights accepts, in one step. Raises OSError.

    Args:
        facts: JSON-like, stored beside the weights, the settings of `fit` and the class names.
    """
    about = {"class_names": config.dataset.names, "fit": config_to_dict(config.fit)}
    save_tensors(path, {"model_state_dict": dict(weights), **about, **facts})


def find_whose(config: Config, fingerprints: Mapping[str, str]) -> dict[str, object]:
    """The settings and data that a state belongs to, by dotted name.

    Args:
        fingerprints: split -> sha256 of its samples.
    """
    given = config_to_dict(config)
    sections = {name: given[name] for name in ("dataset", "augment", "fit")}
    chosen = {name: given["teacher"][name] for name in OF_TEACHER}
    options = chosen.pop("options")
    sections |= {"teacher": chosen, "train": {"seed": given["train"]["seed"]}}
    facts = {name: value for name, value in flatten(sections).items() if name not in NOT_WHOSE}
    facts = {name: value for name, value in facts.items() if value != {}}  # no empty tables
    # the source is of code of the user's, or of a config of transformers
    facts |= {"teacher.options": options, "teacher.source": hash_network(config.teacher)}
    return {**facts, **{f"images of {split}": value for split, value in fingerprints.items()}}


def find_state_path(out: Path) -> Path:
    """Where the state of a fit into `out` is."""
    return out.with_name(f"{out.name}.state")


def write_state(out: Path, state: dict) -> None:
    """Replace the state of a fit into `out`. Raises OSError."""
    save_tensors(find_state_path(out), state)


def read_state(out: Path, *, whose: Mapping[str, object]) -> dict | None:
    """The state of a fit into `out` that was stopped; None if there is none.

    Raises: TrainingError if it is damaged, or belongs to other settings or images.
    """
    path = find_state_path(out)
    if not path.exists():
        return None
    try:
        state, is_sealed = load_tensors(path, follow=False)
    except Exception as error:  # damaged bytes end in a dozen kinds: struct.error, IndexError, ...
        reason, cure = one_line(error), find_cure(error, "delete it")
        raise TrainingError(f"{path}: state is unreadable ({reason}); {cure}") from None
    try:
        STATE(state)
        _check_epochs(state)
    except FieldError as error:
        raise TrainingError(f"{path}: state is unreadable ({error}); delete it") from None
    if not is_sealed:
        seals.tell_unsealed(path)
    _check_whose(path, state["whose"], whose)
    return state


def _check_epochs(state: dict) -> None:
    """Check what fields say of each other: an entry an epoch, and weights if one is scored."""
    epochs = [entry["epoch"] for entry in state["history"]]
    if epochs != list(range(1, state["epoch"] + 1)):
        raise FieldError(f"has epochs {show_value(epochs)}, expected 1 to epoch", "history")
    is_scored = any(entry["miou"] is not None for entry in state["history"])
    if is_scored != (state["best"] is not None):
        raise FieldError("is of another history", "best")


def _check_whose(path: Path, found: Mapping, expected: Mapping) -> None:
    found = {**BEFORE, **{name: value for name, value in found.items() if value != {}}}
    expected = {**BEFORE, **expected}
    absent = Phrase("absent")  # as the names in a table that was not set
    for name in {**found, **expected}:
        there, value = found.get(name, absent), expected.get(name, absent)
        if there != value:
            cure = "go on with what it was begun with, or delete it and start again"
            raise TrainingError(describe(path, field=name, found=there, expected=value, cure=cure))


def remove_state(out: Path) -> None:
    """Remove the state, once the teacher is written. Raises OSError."""
    disk.remove(find_state_path(out))
