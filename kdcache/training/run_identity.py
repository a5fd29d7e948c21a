"""The settings that decide the numbers of a run; check that a folder holds the requested run."""

from __future__ import annotations

from pathlib import Path

from kdcache.cache.facts import hash_facts
from kdcache.cache.layout import UNLABELLED
from kdcache.cache.manifest import Manifest
from kdcache.config import Config, config_to_dict
from kdcache.config.names import is_own_student
from kdcache.config.parser import flatten, make_config
from kdcache.errors import OtherRunError, Phrase, SettingsError, describe
from kdcache.machine.devices import choose_compiling
from kdcache.models.backbone import hash_backbone
from kdcache.models.own_code import (
    SHORT,
    hash_source,
    hash_source_unseen,
    is_same_source,
)
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.learner import choose_arithmetic
from kdcache.training.run_folder import (
    BEFORE,
    LAST,
    SETTINGS,
    TEACHING,
    is_finished,
    is_unused,
    read_result,
    read_run_settings,
)

_MACHINE = ("device", "residency", "cudnn_benchmark", "deterministic")
"""Settings that say where and in which order sums are made, not of what."""
_SAME = "resume with the settings of the run, or choose another run.dir"


def hyperparameters(config: Config) -> dict:
    """The settings that decide the numbers of a run, by dotted name.

    What the identity of the cache covers is not repeated.
    """
    settings = config_to_dict(config)
    chosen = {section: settings[section] for section in ("student", "loss", "train")}
    chosen |= {"augment": {"views": config.augment.views}, "cache": {"levels": config.cache.levels}}
    for machine in _MACHINE:
        chosen["train"].pop(machine)
    crop_hw = config.train.crop_hw  # N is [N, N], and all of a view is no crop
    cropped = crop_hw and crop_hw != config.dataset.size_hw
    chosen["train"]["crop"] = list(crop_hw) if cropped else None
    device, autocast = choose_arithmetic(config)
    compiling, _ = choose_compiling(config.train.compiling, device=device)
    chosen["train"]["compile"] = "on" if compiling else "off"  # other dropout, other rounding
    precision = "float32" if autocast is None else str(autocast).removeprefix("torch.")
    chosen["train"]["precision"] = precision
    if config.student.is_own:
        unused = {"pretrained": None, "aspp_channels": None}
        source = {"source": hash_source(config.student.arch)[:SHORT]}
        chosen["student"] = {**chosen["student"], **unused, **source}
    weights = config.student.backbone_weights
    if weights is not None:  # by what is in it, wherever it lies
        digest = hash_backbone(weights, field="student.backbone_weights")[:SHORT]
        chosen["student"] |= {"pretrained": None, "backbone_weights": digest}
    options = chosen["student"].pop("options")
    return {**flatten(chosen), "student.options": options}


def find_identity(manifest: Manifest, facts: dict) -> str:
    """The hash of what a run was trained on.

    For a run with labels only that is images and labels, which caches of other encodings share,
    and with `train.unlabelled_share` how many unlabelled images there are: they decide the number
    of steps.

    Args:
        facts: the hyperparameters of the run.
    """
    facts = {**BEFORE, **facts}
    taught = any(facts[name] for name in TEACHING)
    identity = manifest.identity_hash if taught else manifest.pictures_hash
    if facts["train.unlabelled_share"] is None:
        return identity
    others = None  # a cache without such images is not that of the run
    if UNLABELLED in manifest.listed:
        num_samples = manifest.listed[UNLABELLED].num_samples
        others = hash_facts(manifest.identity[UNLABELLED]) if taught else num_samples
    return hash_facts({"labelled": identity, "unlabelled": others})


def find_origin(config: Config, manifest: Manifest) -> dict:
    """The facts in a checkpoint and a result that identify their run.

    `hyperparameters` and `cache_identity` make them those of one run; `pictures_identity` (images
    and labels), `validation_identity` (those of val) and `unlabelled_samples` (their number, with
    `train.unlabelled_share`) say which runs can be compared.
    """
    facts = hyperparameters(config)
    origin = {
        "hyperparameters": facts,
        "cache_identity": find_identity(manifest, facts),
        "pictures_identity": manifest.pictures_hash,
        "validation_identity": manifest.validation_hash,
    }
    if config.student.is_own:
        origin["source_sha256"] = hash_source(config.student.arch)
    if config.train.unlabelled_share is not None:
        origin["unlabelled_samples"] = manifest.listed[UNLABELLED].num_samples
    return origin


def check_folder(config: Config, manifest: Manifest, folder: Path, *, resume: bool) -> None:
    """Check that a run may be made or resumed in a folder.

    Raises: SettingsError if the folder holds something else; OtherRunError if it holds a run of
    other settings or another cache; TrainingError if that run is damaged.
    """
    check_place(config, folder, resume=resume)
    stored = _read_stored(folder) if folder.is_dir() else None
    if stored is not None:
        _check_same_run(config, manifest, folder, stored)


def check_place(config: Config, folder: Path, *, resume: bool) -> None:
    """What `check_folder` can check by names and settings alone: is it a folder for this run?

    Raises: SettingsError if the folder holds something else, OtherRunError if its settings are
    those of another run that has not finished an epoch.
    """
    if not folder.exists() or (folder.is_dir() and is_unused(folder)):
        return
    ours = folder.is_dir() and (folder / SETTINGS).is_file()
    if not (resume and ours):
        found, expected = Phrase("in use"), Phrase("a new folder")
        cure = "set run.dir to another folder"
        cure += ", or continue the run with --run.resume" if ours else ""
        raise SettingsError(
            describe(folder, field="run.dir", found=found, expected=expected, cure=cure)
        )
    if not (is_finished(folder) or (folder / LAST).is_file()):
        _check_settings(config, folder)


def _check_settings(config: Config, folder: Path) -> None:
    """Check that settings beside no result and no checkpoint are those of this run.

    They could be a file of any program, which is not to be overwritten.
    """
    stored, cure = read_run_settings(folder), "set run.dir to another folder"
    lacking = next((name for name in config_to_dict(config) if name not in stored), None)
    if lacking is not None:
        found, expected = Phrase("missing"), Phrase("a section, as a run writes it")
        where = folder / SETTINGS
        raise SettingsError(
            describe(where, field=lacking, found=found, expected=expected, cure=cure)
        )
    found, expected = _list_choices(make_config(stored)), _list_choices(config)
    for name, value in expected.items():
        if found[name] != value:
            raise _other_run(folder, name, found[name], value)


def _list_choices(config: Config) -> dict[str, object]:
    """Settings of a run by dotted name, without those that one run may have in several words."""
    settings = config_to_dict(config)
    chosen = {section: settings[section] for section in ("student", "loss", "train")}
    several = (*_MACHINE, "precision", "compile", "crop")
    chosen["train"] = {k: v for k, v in chosen["train"].items() if k not in several}
    options = chosen["student"].pop("options")
    return {**flatten(chosen), "student.options": options, "augment.views": config.augment.views}


def check_source(config: Config, folder: Path, *, resume: bool) -> None:
    """Check that the file of a student of the user's is the recorded one, before it is imported.

    Raises: OtherRunError if it is another one; TrainingError if the run is damaged.
    """
    arch = config.student.arch
    stored = _read_stored(folder) if resume and is_own_student(arch) else None
    facts = stored["hyperparameters"] if stored is not None else {}
    found, expected = facts.get("student.source", "unknown"), hash_source_unseen(arch)
    if facts.get("student.arch") == arch and not is_same_source(found, expected):
        raise _other_run(folder, "student.source", found, expected[:SHORT])


def _read_stored(folder: Path) -> dict | None:
    """The result of a run, else its last checkpoint, else None. Raises TrainingError."""
    if is_finished(folder):
        return read_result(folder)
    return read_checkpoint(folder / LAST) if (folder / LAST).is_file() else None


def _check_same_run(config: Config, manifest: Manifest, folder: Path, stored: dict) -> None:
    found, expected = {**BEFORE, **stored["hyperparameters"]}, hyperparameters(config)
    for name in {**found, **expected}:
        values = found.get(name), expected.get(name)
        if values[0] != values[1]:
            raise _other_run(folder, name, *values)
    identity = find_identity(manifest, expected)
    if stored["cache_identity"] != identity:
        raise _other_run(folder, "cache identity", stored["cache_identity"][:12], identity[:12])


def _other_run(folder: Path, field: str, found: object, expected: object) -> OtherRunError:
    return OtherRunError(describe(folder, field=field, found=found, expected=expected, cure=_SAME))
