"""The same samples by other libraries, each at the best settings its documents know, all into slots
that are there.

Every rival fills the same two sets of slots with the same batches; they alternate within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import tensorstore
import torch
import zarr
from torch.utils.data import DataLoader, Dataset
from zarr.core.buffer import default_buffer_prototype

from kdcache.training.batches import count_read_threads
from tests.bench import adapter, copying
from tests.bench.cached_outputs import load_by_torchdistill
from tests.bench.copying import Fill, Slots, copy_from, fill_batches, make_slots
from tests.bench.figures import Figure, make_figure, median_ratio
from tests.bench.reading import CPU, compare_with_loader, load_store, open_store
from tests.bench.sizes import Bench

# 64 is what zarr-python came to itself (pull request 3526: 10 -> 64, "Concurrent I/O operations" of
# its performance guide).
ZARR_SETTINGS = {"async.concurrency": 64}
NO_LIBRARY = ("memcpy", "np.memmap", "kdcache", "kdcache, by position")
Place = tuple[int, int]


def measure(bench: Bench) -> list[Figure]:
    """GB/s of everybody."""
    root, sizes = open_store(bench), bench.sizes
    source = load_store(root)
    runs = _alternate(bench, root, source)
    rates = {name: statistics.median(values) for name, values in runs.items()}
    libraries = {name: rate for name, rate in rates.items() if name not in NO_LIBRARY}
    best = max(libraries, key=libraries.get)
    loader = "DataLoader on zarr-python, 2 workers"
    sample_bytes = sum(array[0].nbytes for array in source.values())
    return [
        compare_with_loader(runs["kdcache"], runs[loader], copied=runs["memcpy"]),
        make_figure(
            "rivals",
            median_ratio(runs["kdcache"], runs[best]),
            runs=runs,
            gb_s=rates,
            fastest_library=best,
            sample_mb=sample_bytes / 1e6,
            batch_size=sizes.batch_size,
            page_cache="warm",
        ),
    ]


def _alternate(bench: Bench, root: Path, source: dict[str, np.ndarray]) -> dict[str, list[float]]:
    sizes = bench.sizes
    order = copying.shuffle_passes(sizes.store_samples, passes=sizes.rival_passes, seed=3)
    batches = adapter.make_batches(order, sizes.batch_size)
    size_bytes = len(order) * sum(array[0].nbytes for array in source.values())
    with zarr.config.set(ZARR_SETTINGS):
        rivals = _make_rivals(bench, root, source)
        for run in rivals.values():
            run(batches)  # workers are there, files are open, pages are warm
        runs: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(sizes.rival_rounds):
            for name, run in rivals.items():
                runs[name].append(
                    copying.rate_gb_s(lambda run=run: run(batches), size_bytes=size_bytes)
                )
    return runs


def _make_rivals(
    bench: Bench, root: Path, source: dict[str, np.ndarray]
) -> dict[str, Callable[[list[list[Place]]], None]]:
    """Name -> reads batches. Worker processes come first: TensorStore refuses to be forked."""
    size = bench.sizes.batch_size
    mapped, reader = (
        adapter.make_batch_reader(
            adapter.open_train(root, check="never"),
            batch_size=size,
            device=CPU,
            residency=residency,
        )
        for residency in (adapter.WARM, "disk")
    )
    slots = make_slots(reader.reader.layout, size)

    def filled(
        fill: Fill, num_threads: int = count_read_threads()
    ) -> Callable[[list[list[Place]]], None]:
        return lambda batches: fill_batches(slots, batches, fill, num_threads=num_threads)

    loaders = {f"DataLoader on zarr-python, {n} workers": _load_by_workers(root, n) for n in (0, 2)}
    folder = bench.folder / "rivals"
    folder.mkdir(exist_ok=True)
    return {
        "memcpy": filled(copy_from(source)),
        "np.memmap": filled(copy_from(_map_npy(folder, source))),
        "kdcache": lambda batches: adapter.read_all(mapped, batches),
        "kdcache, by position": lambda batches: adapter.read_all(reader, batches),
        "zarr-python": filled(
            read_by_zarr(root), num_threads=1
        ),  # its one event loop does the work: threads gain nothing
        "TensorStore": read_by_tensorstore(root, slots, {}),
        "TensorStore, memmap": read_by_tensorstore(
            root, slots, {"file_io_mode": {"mode": "memmap"}}
        ),
        "h5py": filled(
            _read_by_h5py(folder, source), num_threads=1
        ),  # one lock for the whole library (its threads.rst)
        "torch.load": filled(_read_by_torch(folder, source, mapped=False)),
        "torch.load(mmap=True)": filled(_read_by_torch(folder, source, mapped=True)),
        **loaders,
        **load_by_torchdistill(folder / "cached", source, batch_size=size, num_workers=2),
    }


def _map_npy(folder: Path, source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for name, array in source.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in source}


def read_by_zarr(root: Path) -> Fill:
    """`out` saves its last copy; one sample a call, because it fetches the chunks of a shard one
    after the other anyway.
    """
    store, buffer = zarr.open_group(root / "train", mode="r"), default_buffer_prototype().nd_buffer
    arrays = {name: store[name] for name in adapter.ALL_ARRAYS}

    def fill(row: int, slots: Slots, sample: int) -> None:
        for name, array in arrays.items():
            array.get_basic_selection((0, sample), out=buffer.from_numpy_array(slots[name][row]))

    return fill


def read_by_tensorstore(
    root: Path, slots: list[Slots], options: dict
) -> Callable[[list[list[Place]]], None]:
    """No cache, as many threads as the others, written straight into the slots, a batch at once.

    https://google.github.io/tensorstore/context.html and .../kvstore/file/index.html name the
    settings.
    """
    context = {
        "cache_pool": {"total_bytes_limit": 0},
        "data_copy_concurrency": {"limit": count_read_threads()},
        "file_io_concurrency": {"limit": count_read_threads()},
        **options,
    }
    arrays = {
        name: _open_tensorstore(root / "train" / name, context) for name in adapter.ALL_ARRAYS
    }
    targets = [{name: tensorstore.array(slot) for name, slot in half.items()} for half in slots]

    def read(batches: list[list[Place]]) -> None:
        for number, batch in enumerate(batches):
            half = targets[number % 2]
            jobs = [
                half[name][row].write(array[place])
                for row, place in enumerate(batch)
                for name, array in arrays.items()
            ]
            for job in jobs:
                job.result()

    return read


def _open_tensorstore(path: Path, context: dict) -> tensorstore.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "context": context,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }
    return tensorstore.open(spec, open=True, read=True).result()


def _read_by_h5py(folder: Path, source: dict[str, np.ndarray]) -> Fill:
    """Contiguous, no chunk cache: what its documents call the fastest way to whole rows."""
    with h5py.File(folder / "samples.h5", "w") as file:
        for name, array in source.items():
            file.create_dataset(name, data=array)
    file = h5py.File(folder / "samples.h5", "r", rdcc_nbytes=0)
    arrays = {name: file[name] for name in source}

    def fill(row: int, slots: Slots, sample: int) -> None:
        for name, array in arrays.items():
            array.read_direct(slots[name], source_sel=np.s_[sample], dest_sel=np.s_[row])

    return fill


def _read_by_torch(folder: Path, source: dict[str, np.ndarray], *, mapped: bool) -> Fill:
    """One file a sample, as torchdistill's CacheableDataset keeps a teacher's answers."""
    for sample in range(len(source["image"])):
        path = folder / f"{sample:04d}.pt"
        if not path.exists():
            torch.save(
                {name: torch.from_numpy(array[sample].copy()) for name, array in source.items()},
                path,
            )

    def fill(row: int, slots: Slots, sample: int) -> None:
        loaded = torch.load(folder / f"{sample:04d}.pt", mmap=mapped, weights_only=True)
        for name, slot in slots.items():
            np.copyto(slot[row], loaded[name].numpy())

    return fill


class ZarrSamples(Dataset):
    """What is written first: a sample a call, its store opened lazily in each worker."""

    def __init__(self, root: Path) -> None:
        self.root, self.arrays = root, None

    def __getitem__(self, sample: int) -> dict[str, torch.Tensor]:
        """Tensors of one sample."""
        if self.arrays is None:
            zarr.config.set(ZARR_SETTINGS)
            store = zarr.open_group(self.root / "train", mode="r")
            self.arrays = {name: store[name] for name in adapter.ALL_ARRAYS}
        return {name: torch.from_numpy(array[0, sample]) for name, array in self.arrays.items()}


class _Order:
    """A batch sampler whose batches can be exchanged: the workers stay."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _load_by_workers(root: Path, num_workers: int) -> Callable[[list[list[Place]]], None]:
    """forkserver, persistent workers, prefetch 2: fork is unsafe beside threads, spawn only starts
    more slowly.
    """
    order = _Order()
    options = {
        "multiprocessing_context": "forkserver",
        "persistent_workers": True,
        "prefetch_factor": 2,
    }
    loader = DataLoader(
        ZarrSamples(root),
        batch_sampler=order,
        num_workers=num_workers,
        **(options if num_workers else {}),
    )

    def read(batches: list[list[Place]]) -> None:
        order.batches = [[sample for _, sample in batch] for batch in batches]
        for _ in loader:
            pass

    return read
