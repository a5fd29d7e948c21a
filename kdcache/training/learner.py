"""What a run trains, made from its settings: student, loss, optimiser, schedule; compiled where that is worth it."""

from __future__ import annotations

import torch
from torch import nn

from kdcache.cache.reader import CacheReader
from kdcache.config import LEVELS, Config
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.models.arch import build_student, find_channels
from kdcache.progress import Say
from kdcache.training.arithmetic import choose_arithmetic
from kdcache.training.augment import make_augmentation
from kdcache.training.compiling import choose_compiling, compile_learner, make_trial_batch
from kdcache.training.loop import Learner
from kdcache.training.processes import Alone
from kdcache.training.targets import open_targets
from kdcache.training.turn import Turn


def build_learner(config: Config, *, teacher_channels: dict[str, int]) -> Learner:
    """Student, loss, optimiser and schedule, initialised from train.seed; dropout's sequence starts from it, too."""
    device, autocast = choose_arithmetic(config)
    torch.manual_seed(config.train.seed)
    levels = config.cache.levels
    student = build_student(config.student, num_classes=config.dataset.num_classes)
    own_channels = _find_channels(config, student)
    channels = {level: (teacher_channels[level], own_channels[level]) for level in levels}
    weights = config.loss
    loss = KnowledgeDistillationLoss(
        weights.alpha, weights.beta, weights.gamma, weights.temperature, channels
    )
    torch.manual_seed(config.train.seed)  # again: a run without projections sees the same dropout
    student = student.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        [*student.parameters(), *loss.to(device).parameters()], lr=config.train.lr, fused=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.train.epochs)
    return Learner(student, loss, optimizer, scheduler, device, autocast, forward=student)


def check_student(config: Config) -> None:
    """Ask the student about empty images before anything is trained. Raises SettingsError where it is none, or lacks a level."""
    with torch.random.fork_rng([]):
        student = build_student(
            config.student, num_classes=config.dataset.num_classes, pretrained=False
        )
        _find_channels(config, student)


def _find_channels(config: Config, student: nn.Module) -> dict[str, int]:
    hw = config.train.crop_hw or config.dataset.size_hw
    shape = {"num_classes": config.dataset.num_classes, "hw": hw}
    return find_channels(student, config.cache.levels, arch=config.student.arch, **shape)


def open_learner(config: Config, train: CacheReader, processes: Alone) -> Learner:
    """A fresh one for what is stored in a training split."""
    learner = build_learner(config, teacher_channels=find_teacher_channels(train))
    learner.targets = open_targets(train, learner.device)
    learner.augmentation, learner.processes = make_augmentation(config), processes
    learner.turn = Turn(config.student.arch)
    return learner


def compile_where_worth(config: Config, train: CacheReader, learner: Learner, *, say: Say) -> None:
    """Compile it as `train.compile` says, in all its processes or in none."""
    compiling, line = choose_compiling(config.train.compile, device=learner.device)
    say(line)
    if compiling:
        plain = learner.forward, learner.loss.compute_band
        specs = [train.layout.array(name) for name in list_arrays(learner)]
        size = learner.processes.largest_share(config.train.batch_size)
        trial = make_trial_batch(specs, batch_size=size, device=learner.device)
        trial = learner.augmentation.apply(trial, epoch=0) if learner.augmentation else trial
        works = compile_learner(learner, trial)
        if not learner.processes.has_every(works) and works:  # asked first: each process must
            learner.forward, learner.loss.compute_band = plain
            say("compile: off, not possible in every process")


def list_arrays(learner: Learner) -> list[str]:
    """What training reads: targets of terms without weight are not touched."""
    loss = learner.loss
    answers = [*(["logits"] if loss.beta else []), *loss.align]
    label = ["label"] if loss.alpha else []
    return [
        "image",
        *label,
        *(array for name in answers for array in learner.targets.list_arrays(name)),
    ]


def find_teacher_channels(reader: CacheReader) -> dict[str, int]:
    """level -> channels of the teacher's features, however they are stored."""
    stored = {
        array.name: array.item_shape[0] for array in reader.layout.arrays if array.name in LEVELS
    }
    return {level: reader.encodings[level].channels or count for level, count in stored.items()}
