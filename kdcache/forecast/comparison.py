"""Seconds of the comparison with the teacher that ends phase one: students trained a little, and asked for their gradients."""

from __future__ import annotations

import time

import torch

from kdcache.analysis import students
from kdcache.analysis.students import plan_students
from kdcache.precompute.pipeline import Plan
from kdcache.training.compiling import make_trial_batch
from kdcache.training.learner import build_learner
from kdcache.training.loop import train_step
from kdcache.training.targets import Targets

NUM_STUDENTS, NUM_SOURCES = 2, 2  # fresh and trained; cached and live answers


def expect_comparison(plan: Plan, *, num_samples: int, teacher_s: float) -> float:
    """Of `num_samples` (0: no comparison), the reading of teacher and cache left out.

    A gradient is taken to cost as much as a step of training a sample, whatever the term of the loss.
    """
    if num_samples == 0:
        return 0.0
    count = max(min(plan.config.train.batch_size, plan.manifest.layouts["train"].num_samples), 2)
    sample_s, num_terms = _time_step(plan, count) / count, 2 if plan.config.cache.levels else 1
    gradients_s = NUM_STUDENTS * NUM_SOURCES * num_terms * sample_s
    return students.STEPS * count * sample_s + num_samples * (teacher_s + gradients_s)


def _time_step(plan: Plan, batch_size: int) -> float:
    """Seconds of one step of training a student as the comparison does, on a batch of zeros; one before it warms up."""
    device = plan.teacher.device
    config = plan_students(plan.config, levels=plan.config.cache.levels, device=device)
    shapes = plan.teacher.probe_levels()
    learner = build_learner(
        config, teacher_channels={level: channels for level, (channels, _) in shapes.items()}
    )
    bases = {level: torch.from_numpy(basis).to(device) for level, basis in plan.bases.items()}
    learner.targets = Targets(plan.manifest.encodings, bases)
    learner.student.train()
    batch = make_trial_batch(
        plan.manifest.layouts["train"].arrays, batch_size=batch_size, device=device
    )
    for step in range(2):
        began_s = time.monotonic()
        train_step(learner, batch, where=f"step {step} of a trial")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began_s
