"""Several processes that train one student: each takes a part of every batch, and sums are shared.

Their sums over all processes equal those of a single process with the whole batch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdcache.errors import (
    KdcacheError,
    Phrase,
    SettingsError,
    ToldElsewhere,
    TrainingError,
    describe,
)
from kdcache.machine.devices import find_gpu
from kdcache.machine.process import find_worker
from kdcache.training.order import raw_words

Item = TypeVar("Item")
Value = TypeVar("Value")
# set by torchrun; SLURM tasks without these are independent runs
MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STARTED = "TORCHELASTIC_RUN_ID"  # set by torchrun in the processes that it starts
# the first process may wait for a baseline that another run trains
PATIENCE = timedelta(days=30)


class Alone:
    """A single process: it has the whole batch and nothing to exchange."""

    rank, count = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, prints and decides (rank 0)."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of `items`: contiguous and in order.

        The parts cover all items; their lengths differ by one at most.
        """
        start, stop = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return list(items[start:stop])

    def largest_share(self, count: int) -> int:
        """Length of the largest part of `count` items."""
        return -(-count // self.count)

    def agree(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        """Run `work` in every process and return its result; if it fails in one, all end.

        Raises: the error in the first process that failed; ToldElsewhere in the others.
        """
        return work(*args, **options)

    def lead(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        """Run `work` in the first process only, and return its result in all.

        Raises: its error in the first process; ToldElsewhere in the others.
        """
        return work(*args, **options)

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raise SettingsError if the named `facts` differ from those of the first process."""

    def take_device(self, device: torch.device) -> None:
        """Use this device. Raises SettingsError if two processes would share a GPU."""

    def has_every(self, there: bool) -> bool:
        """Whether `there` is true in all processes."""
        return there

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in a tensor of the same shape."""
        return values

    def draw_dropout(self, *, seed: int, epoch: int) -> None:
        """Seed the dropout of an epoch; a single process continues its sequence instead."""

    def adopt(self, student: nn.Module, device: torch.device) -> None:
        """Prepare a student for several processes.

        On GPUs, BatchNorm then takes its statistics over the whole batch of all processes.
        """

    def add_up_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace each gradient of the parameters of `optimizer` by its sum over all processes."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first process to all others, in place."""


class Processes(Alone):
    """One of `count` processes that torchrun started, with `rank` from 0; see `join_processes`.

    All processes must call every method but `share` and `largest_share`, in the same order. The
    work given to `agree` must not call any of them: a failed process would be missing there.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    def agree(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        value, error = None, None
        try:
            value = work(*args, **options)
        except Exception as failed:
            error = failed
        code = getattr(error, "exit_code", 1) if error else 0
        codes = self._gather(code)
        first = next((rank for rank in range(self.count) if codes[rank]), None)
        if first is None:
            return value
        raise error if first == self.rank else ToldElsewhere(codes[first])

    def lead(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        value = [self.agree(work, *args, **options) if self.leads else self.agree(lambda: None)]
        dist.broadcast_object_list(value, src=0, group=self.patient)
        return value[0]

    def check_same(self, facts: Mapping[str, object]) -> None:
        self.lead(_check_equal, self._gather(facts))

    def take_device(self, device: torch.device) -> None:
        self.lead(_check_different, self._gather(find_gpu(device) or f"CPU of {self.rank}"), device)

    def has_every(self, there: bool) -> bool:
        return all(self._gather(there))

    def add_up(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def draw_dropout(self, *, seed: int, epoch: int) -> None:
        word = int(raw_words(f"dropout/{seed}/{epoch}/{self.rank}/{self.count}", 1)[0])
        torch.manual_seed(word >> 1)

    def adopt(self, student: nn.Module, device: torch.device) -> None:
        if device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(student)

    def add_up_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        # not DistributedDataParallel: it averages, but sums are needed, and it refuses a head
        # without gradient (a loss of features alone). Its overlap with the backward pass gains
        # little for 11 MB of gradients.
        parameters = (
            parameter for group in optimizer.param_groups for parameter in group["params"]
        )
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = self.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)

    def _gather(self, own: Value) -> list[Value]:
        """The values of all processes, by rank."""
        found = [own] * self.count
        dist.all_gather_object(found, own, group=self.patient)
        return found


def _check_equal(found: list[Mapping[str, object]]) -> None:
    first, cure = found[0], "start all with the same settings, cache and arithmetic"
    for rank, facts in enumerate(found):
        for name in {**first, **facts}:
            ours, theirs = facts.get(name), first.get(name)
            if ours != theirs:
                field = f"{name} of process {rank}"
                expected = Phrase(f"{theirs!r}, as process 0 has it")
                raise SettingsError(
                    describe("settings", field=field, found=ours, expected=expected, cure=cure)
                )


def _check_different(found: list[str], device: torch.device) -> None:
    if len(set(found)) < len(found):
        num_gpus = len(set(found))
        cure = f"start {num_gpus} with train.device auto, or as many as there are GPUs"
        expected = Phrase(f"a GPU for each of {len(found)} processes, they see {num_gpus}")
        raise SettingsError(
            describe(
                "settings", field="train.device", found=str(device), expected=expected, cure=cure
            )
        )


def format_processes(processes: Alone, *, batch_size: int, device: torch.device) -> str:
    """A line for the terminal: number of processes, samples of each, BatchNorm statistics."""
    own = "the whole batch's" if device.type == "cuda" else "each process's own"
    share = (
        f"each has up to {processes.largest_share(batch_size)} samples of a batch of {batch_size}"
    )
    return f"processes: {processes.count}, {share}; BatchNorm's statistics are {own}"


@contextmanager
def join_processes() -> Iterator[Alone]:
    """The processes that torchrun started with this one; `Alone` if there are no others.

    Raises: SettingsError if they cannot connect; TrainingError if another process ends before the
    block does.
    """
    worker = find_worker()
    if worker.count == 1 or any(name not in os.environ for name in MEETING):
        yield Alone()
        return
    processes = _meet(worker.rank, worker.count)
    try:
        yield processes
    except RuntimeError as error:
        if isinstance(error, KdcacheError) or not is_lost_process(error):
            raise
        raise TrainingError(
            f"process {worker.rank} of {worker.count}: another process of this run has ended; "
            "look for its line, mend that and resume"
        ) from None
    dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Exit with this code, even if an error left `join_processes` while still connected.

    After an ordinary exit, the threads of gloo would abort the process with another code, and those
    of NCCL would wait for the other processes.
    """
    if not dist.is_initialized():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # who read our words has gone
            stream.flush()
    os._exit(code)


def _meet(rank: int, count: int) -> Processes:
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return Processes(rank, count)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120]
        interface = (
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface "
            "that reaches the other machines"
        )
        cure = interface if STARTED in os.environ else "start them with torchrun"
        raise SettingsError(
            f"environment: {count} processes cannot meet at MASTER_ADDR and MASTER_PORT "
            f"({reason}); {cure}"
        ) from None


def is_lost_process(error: BaseException) -> bool:
    """Whether an error means that another process has ended; gloo has no error type of its own."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )
