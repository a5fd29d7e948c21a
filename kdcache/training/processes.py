"""Several processes that train one student: each takes its rows of every batch, and sums over all are what one process has."""

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
from kdcache.machine.workers import find_worker
from kdcache.training.batches import raw_words

Item = TypeVar("Item")
Value = TypeVar("Value")
MEETING = (
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # torchrun's; tasks of SLURM alone are runs of their own
STARTED = "TORCHELASTIC_RUN_ID"  # set by torchrun for those it starts
PATIENCE = timedelta(
    days=30
)  # the first process may be waiting for a baseline that another run trains


class Alone:
    """One process: all rows are its own, and there is nobody to ask or to tell."""

    rank, count = 0, 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes, prints and decides."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Its part, contiguous and in order; the parts of all processes are everything, and differ by one at most."""
        start, stop = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return list(items[start:stop])

    def largest_share(self, count: int) -> int:
        """Of so many items."""
        return -(-count // self.count)

    def agree(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        """Do `work`, which all processes do; where it fails in one, all end: that one with the error, the others in silence."""
        return work(*args, **options)

    def lead(self, work: Callable[..., Value], *args: object, **options: object) -> Value:
        """What `work` gives in the first process, which alone does it; an error there ends all, as in `agree`."""
        return work(*args, **options)

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raises SettingsError where a process has other facts, by name, than the first one."""

    def take_device(self, device: torch.device) -> None:
        """Make it the process's own. Raises SettingsError where two processes would share a GPU."""

    def has_every(self, there: bool) -> bool:
        """Whether it is so in all processes."""
        return there

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values

    def draw_dropout(self, *, seed: int, epoch: int) -> None:
        """Begin an epoch's dropout; one process goes on with the sequence it has."""

    def adopt(self, student: nn.Module, device: torch.device) -> None:
        """Make a student one of many: on GPUs BatchNorm's statistics become those of the global batch, in every step from now."""

    def add_up_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the sum over all processes in the place of each gradient of what `optimizer` trains."""

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""


class Processes(Alone):
    """One of `count` processes that torchrun has started, by `rank` from 0; made by `join_processes`.

    Every method but `share` and `largest_share` must be called by all processes, in the same order. What `agree` does must
    not call others of them: the one that fails would be missed there.
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
        if device.index is not None:  # plain `cuda` is the one that torch takes by default
            torch.cuda.set_device(device)

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
        # not DistributedDataParallel: it takes means where sums are wanted, and refuses a head without gradient (a loss of
        # features alone); what it is for, sending during the backward pass, has little to win with 11 MB
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
        """Every process's, by rank."""
        found = [own] * self.count
        dist.all_gather_object(found, own, group=self.patient)
        return found


def _check_equal(found: list[Mapping[str, object]]) -> None:
    first, cure = found[0], "start all with the same settings, cache and arithmetic"
    for rank, facts in enumerate(found):
        for name in first:
            if facts[name] != first[name]:
                field, expected = (
                    f"{name} of process {rank}",
                    Phrase(f"{first[name]!r}, as process 0 has it"),
                )
                raise SettingsError(
                    describe(
                        "settings", field=field, found=facts[name], expected=expected, cure=cure
                    )
                )


def _check_different(found: list[str], device: torch.device) -> None:
    if len(set(found)) < len(found):
        cure = "set train.device auto and start a process for each GPU"
        expected = Phrase(f"a GPU for each of {len(found)} processes")
        raise SettingsError(
            describe(
                "settings", field="train.device", found=str(device), expected=expected, cure=cure
            )
        )


def format_processes(processes: Alone, *, batch_size: int, device: torch.device) -> str:
    """One line for a person."""
    own = "the whole batch's" if device.type == "cuda" else "each process's own"
    share = (
        f"each has up to {processes.largest_share(batch_size)} samples of a batch of {batch_size}"
    )
    return f"processes: {processes.count}, {share}; BatchNorm's statistics are {own}"


@contextmanager
def join_processes() -> Iterator[Alone]:
    """The processes that torchrun has started together with this one; alone where there are none.

    Raises: SettingsError where they cannot meet; TrainingError where another one is lost before the block ends.
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
    """Leave with this exit code, also where an error has left `join_processes` with the others still connected.

    Leaving in the ordinary way, gloo's threads would then abort the process, with another code, and NCCL's wait for the others.
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
        interface = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface that reaches the other machines"
        cure = interface if STARTED in os.environ else "start them with torchrun"
        raise SettingsError(
            f"environment: {count} processes cannot meet at MASTER_ADDR and MASTER_PORT ({reason}); {cure}"
        ) from None


def is_lost_process(error: BaseException) -> bool:
    """Whether an error means that another process of the run has ended; gloo has no kind of its own."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )
