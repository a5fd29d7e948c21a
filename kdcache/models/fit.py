"""Fits a teacher to the configured data set: for the demo, and classes other than VOC's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdcache.config import Config
from kdcache.config.names import AS_BUILT, FCNS, TORCHVISION
from kdcache.data.labels import check_classes
from kdcache.data.pictures import Split
from kdcache.data.voc import check_apart, download_voc, read_split
from kdcache.errors import TeacherError, TrainingError, one_line
from kdcache.machine.devices import check_precision, choose_device
from kdcache.models.backbone import demand_backbone, find_backbone, load_backbone
from kdcache.models.checkpoints import describe_state, is_backbone, is_counter
from kdcache.models.fit_files import (
    find_state_path,
    find_whose,
    hold_output,
    read_state,
    remove_state,
    save_teacher,
    write_state,
)
from kdcache.models.fit_loop import Fitting, group_weights
from kdcache.models.networks import Network, build_network, wrap_torchvision
from kdcache.models.teacher import build_fcn, match_names
from kdcache.models.weights import (
    AUX_PREFIX,
    WeightsAbsentError,
    find_weights_enum,
    read_teacher_weights,
)
from kdcache.progress import Progress, Say, Silent, format_time
from kdcache.schema import FieldError

log = logging.getLogger("kdcache")

STATE_EVERY_S = 120.0  # what a stop costs at most, beside the epoch it falls into


@dataclass(frozen=True)
class FittedTeacher:
    """What a fit has written: the weights of epoch `epoch` of `epochs`, mIoU on val 0 to 1."""

    path: Path
    miou: float
    epoch: int
    epochs: int

    def __str__(self) -> str:
        return (
            f"{self.path}: teacher written, epoch {self.epoch} of {self.epochs} kept, "
            f"mIoU on val {self.miou:.4f}"
        )


def fit_teacher(
    config: Config, *, progress: Progress | None = None, say: Say = lambda text: None
) -> FittedTeacher:
    """Train the teacher of `teacher.arch` on the views that phase one caches; write `fit.out`.

    Epoch e shows view e of each image, drawn as phase one draws it. The best scored epoch is kept.
    What training starts from, `build_start` says. FCN and DeepLabV3 of torchvision are trained with
    their auxiliary head. After a stop the same settings go on from a state beside `fit.out`.

    Raises: DataError, SettingsError, TeacherError, FileInUseError if another fit writes `fit.out`,
        or TrainingError at a non-finite loss or a state of other settings.
    """
    progress = progress or Silent()
    device = choose_device(config.teacher.device, field="teacher.device")
    if config.fit.precision != "auto":
        check_precision(config.fit.precision, device, field="fit.precision")
    with hold_output(config.fit.out) as check_held:
        # what does not fit together is met before a data set is read
        goes_on = find_state_path(config.fit.out).exists()
        network = build_fresh(config) if goes_on else build_start(config, say=say)
        group_weights(network, config)
        train, val = _read_splits(config, progress)
        whose = find_whose(config, {"train": train.fingerprint, "val": val.fingerprint})
        state = read_state(config.fit.out, whose=whose)
        fitting = Fitting(network, config, train.samples, device=device)
        if state is not None:
            _go_on(fitting, state, say=say)
        _run(fitting, whose, check_held, progress=progress, say=say)
        check_held()
        return _finish(fitting)


def _read_splits(config: Config, progress: Progress) -> tuple[Split, Split]:
    download_voc(config.dataset)
    names = (config.dataset.train_split, config.dataset.val_split)
    with progress.start("checking data", total=None, unit="samples") as bar:
        train, val = (read_split(config.dataset, name, advance=bar.advance) for name in names)
    check_apart({"train": train, "val": val})
    for line in check_classes(config.dataset, {"train": train.pixels, "val": val.pixels}):
        log.warning("%s", line)
    return train, val


def _go_on(fitting: Fitting, state: dict, *, say: Say) -> None:
    """Take the state of a fit that was stopped. Raises TrainingError if it is of another."""
    out = fitting.config.fit.out
    try:
        fitting.restore(state)
    except (FieldError, RuntimeError) as error:
        path, reason = find_state_path(out), one_line(error)
        raise TrainingError(f"{path}: state is of another fit ({reason}); delete it") from None
    say(f"{out}: going on after epoch {fitting.epoch} of {fitting.config.fit.epochs}")


def _run(
    fitting: Fitting,
    whose: dict,
    check_held: Callable[[], None],
    *,
    progress: Progress,
    say: Say,
) -> None:
    """Train and score what is left; a state is written before scoring, which must not cost it."""
    out, first = fitting.config.fit.out, fitting.epoch
    began_s = saved_s = time.monotonic()
    total = (fitting.config.fit.epochs - first) * len(fitting.samples)
    with progress.start("fitting the teacher", total=total, unit="samples") as bar:
        while True:
            if not fitting.is_scored:
                fitting.score_epoch()
            if fitting.epoch > first:
                say(_format_epoch(fitting, took_s=time.monotonic() - began_s, first=first))
            if fitting.is_over:
                return
            fitting.train_epoch(bar)
            if time.monotonic() - saved_s >= STATE_EVERY_S:
                check_held()
                write_state(out, {"whose": whose, **fitting.to_state()})
                saved_s = time.monotonic()


def _format_epoch(fitting: Fitting, *, took_s: float, first: int) -> str:
    last, epochs = fitting.history[-1], fitting.config.fit.epochs
    line = f"epoch {last['epoch']}/{epochs}  mean loss {last['loss']:.4f}"
    if last["miou"] is not None:
        best = " (best)" if fitting.kept is last else ""
        line += f"  val mIoU {last['miou']:.4f}{best}"
    if fitting.is_over:
        since = f"  stopped: no better in {fitting.config.fit.patience} scored epochs"
        return line + (since if fitting.epoch < epochs else "")
    left_s = took_s / (fitting.epoch - first) * (epochs - fitting.epoch)
    return f"{line}  {format_time(left_s)} left"


def _finish(fitting: Fitting) -> FittedTeacher:
    """Write the teacher, then remove the state."""
    config, kept = fitting.config, fitting.kept
    facts = {"miou": kept["miou"], "epoch": kept["epoch"], "history": fitting.history}
    save_teacher(config.fit.out, fitting.best, config, facts=facts)
    remove_state(config.fit.out)
    return FittedTeacher(config.fit.out, kept["miou"], kept["epoch"], fitting.epoch)


def build_fresh(config: Config) -> Network:
    """The network of `teacher.arch` with weights that `train.seed` draws.

    Raises: SettingsError, TeacherError if it cannot be built.
    """
    arch, num_classes, seed = config.teacher.arch, config.dataset.num_classes, config.train.seed
    if arch not in FCNS:
        return build_network(config.teacher, num_classes=num_classes, seed=seed)
    torch.manual_seed(seed)
    model = build_fcn(arch, num_classes=num_classes, aux_head=True)
    return wrap_torchvision(model, num_classes=num_classes, name=arch)


def build_start(config: Config, *, say: Say) -> Network:
    """The network to start from: with `teacher.backbone_weights`, else `teacher.weights`.

    A head for other classes is drawn anew. All weights are, if those of `teacher.weights` are
    torchvision's and out of reach, or `fit.out`, which is not written yet.

    Raises: SettingsError; TeacherError if weights are missing, unreadable or not of `teacher.arch`.
    """
    teacher = config.teacher
    if teacher.backbone_weights is not None:
        return _start_from_backbone(config, teacher.backbone_weights, say=say)
    if teacher.weights == AS_BUILT:
        say(f"from {teacher.arch}, as it is built")
        return build_network(teacher, num_classes=config.dataset.num_classes)
    network = build_fresh(config)
    try:
        state = read_teacher_weights(teacher.arch, teacher.weights, key=teacher.weights_key)
    except WeightsAbsentError as error:
        absent = teacher.weights == str(config.fit.out)
        if not absent and find_weights_enum(teacher.arch, teacher.weights) is None:
            raise
        say(f"from scratch, since {f'{config.fit.out} is not there yet' if absent else error}")
        return _calm_residuals(network)
    has_new_head = _take_fitting(network, state, where=teacher.weights)
    new = f", with a new head for {config.dataset.num_classes} classes" if has_new_head else ""
    say(f"from {teacher.weights}{new}")
    return network


def _start_from_backbone(config: Config, path: str, *, say: Say) -> Network:
    network, field = build_fresh(config), "teacher.backbone_weights"
    facts = {"owner": network.name, "field": field}
    part = network.module.get_submodule(demand_backbone(network.module, **facts))
    say(f"from {load_backbone(part, path, **facts)}; all else of {network.name} is new")
    return network


def _take_fitting(network: Network, state: dict[str, Tensor], *, where: str) -> bool:
    """Load the weights of a network, whose head may be of other classes; whether that is so.

    Raises: TeacherError if its backbone is not there.
    """
    module, own = network.module, network.module.state_dict()
    if network.name in TORCHVISION and is_backbone(state):  # of its classifier, for example
        state = {f"backbone.{name}": value for name, value in state.items()}
    names, part = match_names(own, state), find_backbone(module)
    state = {names[name]: value for name, value in state.items()}
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and value.shape == own[name].shape
    }
    root = "" if part is None else f"{part}."  # without a backbone all weights must be there
    needed = [name for name in own if name.startswith(root) and not is_counter(name)]
    if not fitting.keys() >= set(needed):
        what = describe_state(state)
        kind = f" but of {what}" if what and what != describe_state(own) else ""
        raise TeacherError(
            f"{where}: weights are not those of a {network.name}{kind}; set teacher.weights"
        )
    module.load_state_dict(fitting, strict=False)
    fresh = [n for n in own if n not in {*fitting, *needed} and not n.startswith(AUX_PREFIX)]
    return any(not is_counter(name) for name in fresh)


def _calm_residuals(network: Network) -> Network:
    """Start every residual branch of torchvision's at zero: it saves the first epochs.

    Goyal et al. 2017, arXiv:1706.02677.
    """
    for module in network.module.modules() if network.name in TORCHVISION else ():
        if hasattr(module, "bn3"):
            nn.init.zeros_(module.bn3.weight)
    return network
