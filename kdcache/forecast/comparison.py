"""Seconds of the comparison with the teacher that ends phase one: students trained a little, and asked for their gradients."""

from __future__ import annotations

import time

import torch

from kdcache.analysis import students
from kdcache.analysis.students import plan_students
from kdcache.precompute.pipeline import Job
from kdcache.training.compiling import make_trial_batch
from kdcache.training.learner import build_learner
from kdcache.training.loop import train_step
from kdcache.training.targets import Targets

NUM_STUDENTS, NUM_SOURCES = 2, 2  # fresh and trained; cached and live answers


def expect_comparison(job: Job, *, num_samples: int, teacher_s: float) -> float:
    """Of `num_samples` (0: no comparison), the reading of teacher and cache left out.

    A gradient is taken to cost as much as a step of training a sample, whatever the term of the loss.
    """
    if num_samples == 0:
        return 0.0
    count = max(min(job.config.train.batch_size, job.manifest.layouts["train"].num_samples), 2)
    sample_s, num_terms = _time_step(job, count) / count, 2 if job.config.cache.levels else 1
    gradients_s = NUM_STUDENTS * NUM_SOURCES * num_terms * sample_s
    return students.STEPS * count * sample_s + num_samples * (teacher_s + gradients_s)


def _time_step(job: Job, batch_size: int) -> float:
    """Seconds of one step of training a student as the comparison does, on a batch of zeros; one before it warms up."""
    device = job.teacher.device
    config = plan_students(job.config, levels=job.config.cache.levels, device=device)
    shapes = job.teacher.probe_levels()
    learner = build_learner(
        config, teacher_channels={level: channels for level, (channels, _) in shapes.items()}
    )
    bases = {level: torch.from_numpy(basis).to(device) for level, basis in job.bases.items()}
    learner.targets = Targets(job.manifest.encodings, bases)
    learner.student.train()
    batch = make_trial_batch(
        job.manifest.layouts["train"].arrays, batch_size=batch_size, device=device
    )
    for step in range(2):
        began_s = time.monotonic()
        train_step(learner, batch, where=f"step {step} of a trial")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began_s
