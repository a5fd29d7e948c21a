"""What a run trains, built from its settings: student, loss, optimiser, learning rate schedule; on
which device, and in which precision.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from kdcache.cache.encodings import Targets
from kdcache.cache.reader import CacheReader
from kdcache.config import LEVELS, Config
from kdcache.config.names import BUILT_IN_STUDENT, is_own_student
from kdcache.errors import KdcacheError, TrainingError, is_of_machine, one_line
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.machine.devices import (
    check_precision,
    choose_device,
    reserve_workspace,
    supports_bfloat16,
    use_kernels,
)
from kdcache.machine.process import find_driver
from kdcache.models.own_code import find_source
from kdcache.models.student import build_student, find_channels
from kdcache.training.batches import Augmentation, make_augmentation
from kdcache.training.processes import Alone, is_lost_process
from kdcache.training.samples import JoinedReader

NOT_REPEATABLE = "does not have a deterministic implementation"  # as torch says it
KNOWN_FAILURES = (KdcacheError, OSError)
"""Errors that say themselves what is wrong, as does one of missing memory."""


@dataclass
class Learner:
    """What training changes: student, projections (inside the loss), optimiser, schedule."""

    student: nn.Module
    loss: KnowledgeDistillationLoss
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    device: torch.device
    autocast: torch.dtype | None
    """None: float32."""
    forward: Callable
    """The student in training, perhaps compiled."""
    arch: str = BUILT_IN_STUDENT
    targets: Targets = field(default_factory=Targets)
    augmentation: Augmentation | None = None
    """None: batches are used as they are read."""
    start: str = ""
    """What the student starts from, a line; "" if there is nothing to say."""
    compiled: bool = False
    """Whether `forward` is compiled, whatever `train.compile` asks for."""
    processes: Alone = field(default_factory=Alone)
    """The processes that train this student together."""


def open_learner(config: Config, train: CacheReader, processes: Alone) -> Learner:
    """A new learner for the targets stored in a training split."""
    learner = build_learner(config, teacher_channels=find_teacher_channels(train))
    learner.targets = open_targets(train, learner.device)
    learner.augmentation, learner.processes = make_augmentation(config), processes
    return learner


def open_targets(reader: CacheReader | JoinedReader, device: torch.device) -> Targets:
    """Of a training split."""
    bases = {level: torch.from_numpy(basis).to(device) for level, basis in reader.bases.items()}
    return Targets(reader.encodings, bases)


def build_learner(config: Config, *, teacher_channels: dict[str, int]) -> Learner:
    """Student, loss, optimiser and schedule, initialised from train.seed, as is dropout's sequence.

    Args:
        teacher_channels: level -> channels of the teacher's features.
    """
    device, autocast = choose_arithmetic(config)
    torch.manual_seed(config.train.seed)
    said: list[str] = []
    classes = config.dataset.num_classes
    student = build_student(config.student, num_classes=classes, say=said.append)
    own_channels = _find_channels(config, student)
    channels = {
        level: (teacher_channels[level], own_channels[level]) for level in config.cache.levels
    }
    loss = KnowledgeDistillationLoss(**vars(config.loss), channels=channels)
    torch.manual_seed(config.train.seed)  # again: a run without projections draws the same dropout
    student = student.to(device, memory_format=torch.channels_last)
    weights = [*student.parameters(), *loss.to(device).parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.train.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.train.epochs)
    return Learner(
        student,
        loss,
        optimizer,
        scheduler,
        device,
        autocast,
        forward=student,
        arch=config.student.arch,
        start=" ".join(said),
    )


def choose_arithmetic(config: Config) -> tuple[torch.device, torch.dtype | None]:
    """Device and autocast dtype (None: float32).

    From then on a GPU takes kernels as `train.deterministic` and `train.cudnn_benchmark` say.

    Raises: SettingsError if the machine lacks them.
    """
    train, precision = config.train, config.train.precision
    if train.deterministic and train.device != "cpu":
        reserve_workspace(field="train.deterministic")  # before the GPU is looked at
    device = choose_device(train.device, field="train.device")
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and supports_bfloat16(device) else "float32"
    check_precision(precision, device, field="train.precision")
    use_kernels(device, deterministic=train.deterministic, benchmark=train.cudnn_benchmark)
    return device, None if precision == "float32" else getattr(torch, precision)


def check_student(config: Config) -> None:
    """Run the student on empty images, before anything is trained.

    Raises: SettingsError if it cannot be built or run, or lacks a level; TeacherError if
        `student.backbone_weights` are not its own.
    """
    classes = config.dataset.num_classes
    with torch.random.fork_rng([]):
        from_file = config.student.backbone_weights is not None  # it is read, nothing is fetched
        student = build_student(config.student, num_classes=classes, pretrained=from_file)
        _find_channels(config, student)


def describe_arithmetic(learner: Learner) -> str:
    """A line for the terminal: device, driver, precision, and whether the student is compiled."""
    device, precision = learner.device, "float32" if learner.autocast is None else "bfloat16"
    name = "cpu"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)} ({device}), driver {find_driver()}"
        name += f", CUDA {torch.version.cuda}"
    return f"device: {name}, {precision}, {'compiled' if learner.compiled else 'not compiled'}"


def list_arrays(learner: Learner) -> list[str]:
    """The arrays that training reads; targets of terms of weight 0 are not touched."""
    loss = learner.loss
    answers = [*(["logits"] if loss.needs_logits else []), *loss.align]
    arrays = [array for name in answers for array in learner.targets.list_arrays(name)]
    return ["image", *(["label"] if loss.alpha else []), *arrays]


def find_teacher_channels(reader: CacheReader) -> dict[str, int]:
    """level -> channels of the teacher's features, whatever their encoding."""
    stored = {
        array.name: array.item_shape[0] for array in reader.layout.arrays if array.name in LEVELS
    }
    return {level: reader.encodings[level].channels or count for level, count in stored.items()}


@contextmanager
def explain_failures(arch: str) -> Iterator[None]:
    """Turn what the code of a student of the user's raises into one line.

    Args:
        arch: of the student. Errors of the built-in one are ours, and stay what they are.

    Raises: TrainingError in place of any error but KNOWN_FAILURES, missing memory and a lost
        process.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        known = isinstance(error, KNOWN_FAILURES) or is_of_machine(error)
        known = known or is_lost_process(error)
        if not known and NOT_REPEATABLE in str(error):
            reason = f"student.arch {arch} cannot be ({one_line(error)})"
            cure = "set it to false, or change the student"
            raise TrainingError(
                f"settings: train.deterministic is True and {reason}; {cure}"
            ) from None
        if known or not is_own_student(arch):
            raise
        raise describe_failure(error, arch) from None


def describe_failure(error: BaseException, arch: str) -> TrainingError:
    """What a student raised, in one line, with the last place in the user's own file."""
    place = ""
    if is_own_student(arch):
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == find_source(arch)] or frames
        place = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    cure = "mend it, then start again (--run.resume goes on after the last whole epoch)"
    return TrainingError(
        f"student.arch {arch} is failing in training ({one_line(error, named=True)}{place}); {cure}"
    )


def _find_channels(config: Config, student: nn.Module) -> dict[str, int]:
    hw = config.train.crop_hw or config.dataset.size_hw
    shape = {"num_classes": config.dataset.num_classes, "hw": hw}
    return find_channels(student, config.cache.levels, arch=config.student.arch, **shape)
