"""Fine-tunes a teacher on the configured data set: for the demo and classes other than VOC's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from kdcache.config import Config
from kdcache.config.names import FCNS
from kdcache.data.labels import check_classes
from kdcache.data.pictures import Split
from kdcache.data.voc import check_apart, download_voc, read_split
from kdcache.errors import TeacherError, TrainingError, one_line, refuse
from kdcache.machine.devices import check_precision, choose_device
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
from kdcache.models.fit_loop import Fitting
from kdcache.models.teacher import build_fcn
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


def fit_teacher(
    config: Config, *, progress: Progress | None = None, say: Say = lambda text: None
) -> float:
    """Train an FCN with its auxiliary head on the views that phase one caches; write `fit.out`.

    Epoch e shows view e of each image, drawn as phase one draws it. The best scored epoch is kept.
    Training starts from `teacher.weights`; a head for other classes is initialised anew. It starts
    from scratch if these are torchvision's and out of reach, or are `fit.out`, not written yet.
    After a stop the same settings go on from a state beside `fit.out`.

    Returns: mIoU on val, 0 to 1, of the epoch that is kept.

    Raises: DataError, SettingsError, FileInUseError if another fit writes `fit.out`, or
        TrainingError at a non-finite loss or a state of other settings.
    """
    progress = progress or Silent()
    if config.teacher.arch not in FCNS:
        expected = f"{' or '.join(FCNS)}, which fit trains; bring other weights trained elsewhere"
        raise refuse("teacher.arch", config.teacher.arch, expected)
    device = choose_device(config.teacher.device, field="teacher.device")
    if config.fit.precision != "auto":
        check_precision(config.fit.precision, device, field="fit.precision")
    with hold_output(config.fit.out) as check_held:
        train, val = _read_splits(config, progress)
        whose = find_whose(config, {"train": train.fingerprint, "val": val.fingerprint})
        fitting = _begin(config, train, whose, device=device, say=say)
        _run(fitting, whose, check_held, progress=progress, say=say)
        check_held()
        return _finish(fitting, say=say)


def _read_splits(config: Config, progress: Progress) -> tuple[Split, Split]:
    download_voc(config.dataset)
    names = (config.dataset.train_split, config.dataset.val_split)
    with progress.start("checking data", total=None, unit="samples") as bar:
        train, val = (read_split(config.dataset, name, advance=bar.advance) for name in names)
    check_apart({"train": train, "val": val})
    for line in check_classes(config.dataset, {"train": train.pixels, "val": val.pixels}):
        log.warning("%s", line)
    return train, val


def _begin(config: Config, train: Split, whose: dict, *, device: torch.device, say: Say) -> Fitting:
    """From the state of a fit that was stopped, else from the weights to start from."""
    state = read_state(config.fit.out, whose=whose)
    torch.manual_seed(config.train.seed)
    if state is None:
        return Fitting(build_start(config, say=say), config, train.samples, device=device)
    model = build_fcn(config.teacher.arch, num_classes=config.dataset.num_classes, aux_head=True)
    fitting = Fitting(model, config, train.samples, device=device)
    try:
        fitting.restore(state)
    except (FieldError, RuntimeError) as error:
        path, reason = find_state_path(config.fit.out), one_line(error)
        raise TrainingError(f"{path}: state is of another fit ({reason}); delete it") from None
    say(f"{config.fit.out}: going on after epoch {fitting.epoch} of {config.fit.epochs}")
    return fitting


def _run(
    fitting: Fitting,
    whose: dict,
    check_held: Callable[[], None],
    *,
    progress: Progress,
    say: Say,
) -> None:
    """Train and score what is left; a state is written before scoring, which must not cost it."""
    out, epochs, first = fitting.config.fit.out, fitting.config.fit.epochs, fitting.epoch
    began_s = saved_s = time.monotonic()
    total = (epochs - first) * len(fitting.samples)
    with progress.start("fitting the teacher", total=total, unit="samples") as bar:
        while True:
            if not fitting.is_scored:
                fitting.score_epoch()
            if fitting.epoch > first:
                say(_format_epoch(fitting, took_s=time.monotonic() - began_s, first=first))
            if fitting.epoch == epochs:
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
    left_s = took_s / (fitting.epoch - first) * (epochs - fitting.epoch)
    return line + (f"  {format_time(left_s)} left" if fitting.epoch < epochs else "")


def _finish(fitting: Fitting, *, say: Say) -> float:
    """Write the teacher, then remove the state."""
    config, kept = fitting.config, fitting.kept
    facts = {"miou": kept["miou"], "epoch": kept["epoch"], "history": fitting.history}
    save_teacher(config.fit.out, fitting.best, config, facts=facts)
    remove_state(config.fit.out)
    say(
        f"{config.fit.out}: teacher written, epoch {kept['epoch']} of {fitting.epoch} kept, "
        f"mIoU on val {kept['miou']:.4f}"
    )
    return kept["miou"]


def build_start(config: Config, *, say: Say) -> nn.Module:
    """The model to start from, with `teacher.weights`.

    Weights are fresh if torchvision's are out of reach or `fit.out` is not written yet.

    Raises: TeacherError if the weights are missing, unreadable or not of `teacher.arch`.
    """
    model = build_fcn(config.teacher.arch, num_classes=config.dataset.num_classes, aux_head=True)
    try:
        teacher = config.teacher
        state = read_teacher_weights(teacher.arch, teacher.weights, key=teacher.weights_key)
    except WeightsAbsentError as error:
        if find_weights_enum(
            config.teacher.arch, config.teacher.weights
        ) is None and config.teacher.weights != str(config.fit.out):
            raise
        absent = config.teacher.weights == str(config.fit.out)
        say(f"from scratch, since {f'{config.fit.out} is not there yet' if absent else error}")
        return _calm_residuals(model)
    own = model.state_dict()
    if is_backbone(state):  # of torchvision's classifier, for example
        state = {f"backbone.{name}": value for name, value in state.items()}
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and value.shape == own[name].shape
    }
    needed = [name for name in own if name.startswith("backbone.") and not is_counter(name)]
    if len([name for name in fitting if not is_counter(name)]) < len(needed):
        what = describe_state(state)
        kind = f" but of {what}" if what and what != describe_state(own) else ""
        raise TeacherError(
            f"{config.teacher.weights}: weights are not those of a {config.teacher.arch}{kind}; "
            "set teacher.weights"
        )
    model.load_state_dict(fitting, strict=False)
    fresh = [n for n in own if n not in {*fitting, *needed} and not n.startswith(AUX_PREFIX)]
    fresh = [name for name in fresh if not is_counter(name)]
    say(
        f"from {config.teacher.weights}"
        + (f", with a new head for {config.dataset.num_classes} classes" if fresh else "")
    )
    return model


def _calm_residuals(model: nn.Module) -> nn.Module:
    """Start every residual branch at zero: from scratch, this saves the first epochs.

    Goyal et al. 2017, arXiv:1706.02677.
    """
    for module in model.modules():
        if hasattr(module, "bn3"):
            nn.init.zeros_(module.bn3.weight)
    return model
