"""What the processes of tests/distributed do: join as torchrun would have them, train, and tell
what they saw.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import CacheReader
from kdcache.config.parser import make_config, merge
from kdcache.errors import KdcacheError, SettingsError
from kdcache.losses import LossTerms
from kdcache.machine import devices
from kdcache.progress import Silent
from kdcache.training import learner as learning
from kdcache.training import loop, processes, run, samples
from kdcache.training.distill import distill
from kdcache.training.processes import Alone, join_processes
from kdcache.training.run import TrainingEvents

NUM_TRAIN, NUM_VAL = 13, 5  # in batches of 8: eight and five
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["kdcache.training.distill", "kdcache.precompute.build"])


def make_many(rank: int, count: int) -> Alone:
    """A process that knows its place and nobody else."""
    alone = Alone()
    alone.rank, alone.count = rank, count
    return alone


def run_together(count: int, work: Callable, *args: object) -> list:
    """What `work(processes, *args)` gives in each of `count` processes by rank; (name, message,
    exit code) of an error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = [_context.SimpleQueue() for _ in range(count)]
    places = [(rank, count, port, answer) for rank, answer in enumerate(answers)]
    children = [_context.Process(target=_join, args=(*place, work, args)) for place in places]
    for child in children:
        child.start()
    found = [_wait(child, answer) for child, answer in zip(children, answers, strict=True)]
    for child in children:
        child.join(60)
    return found


def _wait(child: multiprocessing.process.BaseProcess, answer: object) -> object:
    """An answer; the exit code of a process that died without one."""
    while answer.empty():
        child.join(0.05)
        if child.exitcode is not None and answer.empty():
            return child.exitcode
    return answer.get()


def _join(rank: int, count: int, port: int, answer: object, work: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    names = {
        "RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_PORT": port,
    }
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        **{name: str(value) for name, value in names.items()},
    }
    try:
        with join_processes() as joined:
            found = work(joined, *args)
    except KdcacheError as error:
        found = (type(error).__name__, str(error), error.exit_code)
    answer.put(found)


def train_exactly(joined: Alone, given: dict, num_epochs: int) -> dict:
    """Train with BatchNorm frozen and dropout off, and note what each step and each reading was."""
    config = make_config(given)
    data = samples.open_data(
        config.cache.path, read_manifest(config.cache.path), num_views=config.augment.views
    )
    seen = {"losses": [], "ids": [], "terms": [], "read": set()}
    read_into, train_step = CacheReader.read_into, loop.train_step

    def note_step(learner, batch, *, where):
        if "label" in batch.arrays:
            hide_labels(batch)
        terms = train_step(learner, batch, where=where)
        seen["losses"].append(joined.add_up(terms.total.detach()).item())
        seen["ids"].append(list(batch.sample_ids))
        return terms

    def note_reading(self, slot, *, array, view, sample, maps=None):
        seen["read"].add((self.layout.split, self.sample_ids[sample]))
        return read_into(self, slot, array=array, view=view, sample=sample, maps=maps)

    planned = run.PlannedRun(config, Path("nowhere"), resume=False)
    learner, _ = run.prepare(planned, data, joined, events=TrainingEvents())
    freeze(learner.student)
    train, val = run.open_readers(config, data, learner, TrainingEvents())
    try:
        loop.train_step, CacheReader.read_into = note_step, note_reading
        for epoch in range(1, num_epochs + 1):
            entry, confusion = loop.run_epoch(
                config, learner, train, val, epoch=epoch, progress=Silent()
            )
            seen["terms"].append(
                {name: entry[name] for name in ("ce", "kd", "feature", "total") if name in entry}
            )
    finally:
        loop.train_step, CacheReader.read_into = train_step, read_into
    weights = [
        p.detach().flatten() for p in (*learner.student.parameters(), *learner.loss.parameters())
    ]
    return {**seen, "confusion": confusion.tolist(), "weights": torch.cat(weights).numpy()}


def hide_labels(batch: loop.Batch) -> None:
    """All but a few labels of every second sample become void: processes count very different
    numbers of pixels.
    """
    for label, sample_id in zip(batch.arrays["label"], batch.sample_ids, strict=True):
        if int(sample_id[-4:]) % 2:
            label.view(-1)[5 * (1 + int(sample_id[-4:])) :] = 255


def freeze(student: nn.Module) -> None:
    """BatchNorm keeps its statistics, dropout lets everything through."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def train_whole(joined: Alone, given: dict, last_epoch: int | None = None) -> dict:
    """Train as the command does, up to an epoch; returns the student's mIoU and, by name, how each
    of its buffers ends.
    """
    train_epoch, learners = loop.train_epoch, []

    def stop(current, *args, epoch, **options):
        if last_epoch is not None and epoch > last_epoch:
            raise SettingsError("enough")
        learners.append(current)
        return train_epoch(current, *args, epoch=epoch, **options)

    loop.train_epoch = stop
    try:
        outcome = distill(given, root=make_config(given).cache.path, processes=joined)
    finally:
        loop.train_epoch = train_epoch
    tensors = [*learners[-1].student.buffers(), *learners[-1].student.parameters()]
    return {
        "miou": outcome.student["miou"],
        "tensors": torch.cat([t.detach().double().flatten() for t in tensors]).numpy(),
    }


def fail(joined: Alone, given: dict, how: str) -> None:
    """Train; something happens to the second process in its second step."""
    compute_step, steps = loop.compute_step, []

    def compute(learner, batch):
        steps.append(batch)
        terms = compute_step(learner, batch)
        if joined.rank == 1 and len(steps) == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            return LossTerms(terms.total * float("nan"), terms.ce, terms.kd, terms.feature)
        return terms

    loop.compute_step = compute
    distill(given, root=make_config(given).cache.path, processes=joined)


def refuse_in(joined: Alone, rank: int) -> int:
    """An error in one process while all do something."""

    def work() -> int:
        if joined.rank == rank:
            raise SettingsError(f"not in {rank}")
        return 5

    assert (
        joined.agree(lambda: joined.rank) == joined.rank and joined.lead(lambda: joined.rank) == 0
    )
    return joined.agree(work)


def share_one_gpu(joined: Alone) -> None:
    """As NCCL would not have it."""
    processes.find_gpu = lambda device: "GPU-0"
    joined.take_device(torch.device("cuda:0"))


def take_default_gpus(joined: Alone) -> None:
    """Each on a machine of its own."""
    processes.find_gpu = lambda device: f"GPU-{joined.rank}"
    joined.take_device(torch.device("cuda"))


def train_otherwise(joined: Alone, given: dict, own: dict) -> None:
    """The second process has settings of its own."""
    given = merge(given, own) if joined.rank else given
    distill(given, root=make_config(given).cache.path, processes=joined)


def compile_where_it_fails_in_one(joined: Alone, given: dict) -> tuple[bool, list[str]]:
    """Whether the student is a compiled one, and what is said of it."""
    config, said = make_config(merge(given, {"train": {"compile": "on"}})), []
    data = samples.open_data(
        config.cache.path, read_manifest(config.cache.path), num_views=config.augment.views
    )
    learner = learning.open_learner(config, data.train, joined)
    devices.shutil.which = lambda name: name
    run.torch.compile = lambda function: (
        fail_here if joined.rank else (lambda *args, **opts: function(*args, **opts))
    )
    run.compile_where_worth(config, data.train, learner, batch_sizes=[2], say=said.append)
    return learner.forward is not learner.student, said[1:]


def fail_here(*args: object, **options: object) -> None:
    """In the place of a compiler."""
    raise RuntimeError("no ptxas")


def draw(joined: Alone) -> list[float]:
    """What dropout would draw at the beginning of two epochs, the first one twice."""
    numbers = []
    for epoch in (1, 2, 1):
        joined.draw_dropout(seed=0, epoch=epoch)
        numbers.append(torch.rand(()).item())
    return numbers
