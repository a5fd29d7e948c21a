"""The measurements themselves: every part runs at tiny sizes, every figure has a number or a
reason.
"""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import yaml

from kdcache.cache.reader import open_split
from kdcache.config.parser import merge
from kdcache.training.batches import BatchReader
from tests.bench import adapter, encodings, gpu, training
from tests.bench.adapter import LEVELS
from tests.bench.cached_outputs import load_by_torchdistill
from tests.bench.copying import shuffle_passes
from tests.bench.data import make_store
from tests.bench.figures import SPECS, find_parts, make_figure, median_ratio, skip_figure
from tests.bench.gpu import (
    find_differing,
    make_byte_slots,
    map_shards,
    measure_registered,
    send_batch,
    unite_us,
)
from tests.bench.growth_child import time_sample_ms
from tests.bench.phase_one import read_images
from tests.bench.reading import compare_with_loader
from tests.bench.sizes import FULL, QUICK, Bench
from tests.bench.table import render_markdown

pytestmark = pytest.mark.xdist_group("bench")  # its data set is made once
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


def run_bench(*options: str) -> subprocess.CompletedProcess:
    """`python -m tests.bench` in a process of its own: it starts workers, and TensorStore, which it
    loads, forbids forks.
    """
    command = [sys.executable, "-m", "tests.bench", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )


@pytest.fixture(scope="module")
def document(tmp_path_factory, base_given, real_teacher_file) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    real = folder / "real.yaml"
    given = merge(base_given, {"teacher": {"weights": str(real_teacher_file)}})
    real.write_text(yaml.safe_dump(given))
    options = [
        "--real",
        str(real),
        "--dir",
        str(folder / "data"),
        "--out",
        str(folder / "bench.json"),
    ]
    done = run_bench("--quick", *options)
    assert done.returncode == 0, done.stderr
    assert not list((folder / "data").iterdir())  # temporary data are gone
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.nightly
def test_bench_measures_every_figure_or_says_why_not(document):
    assert list(document["figures"]) == [spec.key for spec in SPECS]
    for key, figure in document["figures"].items():
        if figure["value"] is None:
            assert figure["verdict"] == "skipped" and "no GPU" in figure["reason"], key
        else:
            assert math.isfinite(figure["value"]) and figure["value"] > 0, key
        assert figure["definition"] and figure["unit"]


@pytest.mark.nightly
def test_bench_says_where_and_with_what_it_measured(document):
    assert document["quick"] and document["date"]
    assert (
        document["machine"]["cpu"]
        and document["machine"]["cores"] >= 1
        and "gpu" in document["machine"]
    )
    assert {"python", "torch", "zarr", "numcodecs", "tensorstore", "h5py", "kdcache"} <= set(
        document["versions"]
    )


@pytest.mark.nightly
def test_bench_keeps_raw_runs_of_every_figure_with_a_goal(document):
    for key, figure in document["figures"].items():
        if figure["goal"] is not None and figure["value"] is not None:
            assert figure["runs"] and all(figure["runs"].values()), key


@pytest.mark.nightly
def test_bench_renders_markdown(document):
    text = render_markdown(document)
    assert "numbers mean nothing" in text  # of a quick run
    assert all(f"| `{spec.key}` |" in text for spec in SPECS)
    assert "TensorStore" in text and "zarr-python" in text


def test_encodings_are_skipped_without_a_real_teacher(tmp_path):
    figures = encodings.measure(Bench(tmp_path, QUICK, quick=True))
    assert len(figures) == 9 and all("--real CONFIG" in figure.reason for figure in figures)


def test_parts_are_found_by_their_own_name_and_by_a_figure():
    assert find_parts("growth,read_ratio") == ["reading", "growth"]
    assert len(find_parts(None)) == len({spec.part for spec in SPECS})
    with pytest.raises(SystemExit, match="'spede' is unknown"):
        find_parts("spede")


def test_verdict_follows_the_goal():
    assert make_figure("read_ratio", 0.95).verdict == "met"
    assert make_figure("read_ratio", 0.85).verdict == "missed"
    assert make_figure("kd_tax", 1.1).verdict == "met"
    assert make_figure("kd_tax", 1.1, gpu=True).verdict == "missed"
    assert make_figure("read_cold", 0.5).verdict == "reported"
    assert make_figure("online_speedup", 2.0).verdict == "missed"
    assert make_figure("online_speedup", 2.0, gpu=True).verdict == "reported"
    assert make_figure("gpu_busy", 0.96, gpu=True).verdict == "met"
    assert skip_figure("gpu_busy", "no GPU").verdict == "skipped"


@pytest.mark.parametrize(("copied", "verdict"), [(19.0, "reported"), (30.0, "missed")])
def test_a_goal_that_no_memory_reaches_is_none(copied, verdict):
    figure = compare_with_loader([16.0, 16.0], [1.0, 1.0], copied=[copied, copied])
    assert figure.value == 16 and figure.verdict == verdict
    assert figure.details["memory_copy"] == copied


def test_figure_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="read_ratio is nan, expected a finite number"):
        make_figure("read_ratio", math.nan)


def test_ratio_is_the_median_of_the_rounds():
    assert median_ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


def test_union_counts_overlapping_kernels_once():
    assert unite_us([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4
    assert unite_us([]) == 0


def test_steady_time_leaves_out_the_start():
    marks = [(0.0, 0), (9.0, 10)] + [(9.0 + k, 10 + 10 * k) for k in range(1, 20)]
    assert time_sample_ms(marks) == pytest.approx(100)


def test_phase_one_is_measured_with_more_where_there_is_a_gpu(monkeypatch, tmp_path):
    bench = Bench(tmp_path, FULL, quick=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.build == FULL.build and bench.build.num_samples == 24
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert bench.build == FULL.build_gpu and bench.build.px == 512


def test_phase_one_on_a_gpu_comes_into_step_and_fits_the_disk():
    build, size = FULL.build_gpu, FULL.batch_size
    assert build.train % size == build.val % size == 0  # full groups, full batches
    assert (
        build.num_samples // size >= 5 * 11
    )  # on the way at once: one asked about, two drawn, eight written
    assert build.train * build.views * 15.9e6 + build.val * 1.22e6 < 10e9


def test_bare_forward_is_asked_about_every_view(cache):
    batches, reader = read_images(cache, "train"), open_split(cache.cache.path, "train")
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2  # ten samples in two views
    assert np.array_equal(batches[3][1], reader.read("image", 1, 1))


def test_chunks_sent_one_by_one_are_the_batches_of_the_reader(tmp_path):
    root, cpu = (
        make_store(tmp_path / "store", px=32, num_samples=6, shard_samples=4),
        torch.device("cpu"),
    )
    reader = adapter.make_batch_reader(
        adapter.open_train(root, check="never"), batch_size=4, device=cpu
    )
    shards, slots = map_shards(root), make_byte_slots(reader.reader.layout, 4, device=cpu)
    places = adapter.make_batches([5, 0, 3, 2, 4, 1], 4)
    for batch, expected in zip(places, reader.read(places), strict=True):
        send_batch(reader.reader, batch, shards=shards, slots=slots)
        assert not find_differing(expected, slots)
    slots["low"][1, -1] ^= 1
    assert find_differing(expected, slots) == ["low"]


class StandInCudart:
    """Page-locking without a GPU; refuses once `room` mappings are locked."""

    def __init__(self, room: int) -> None:
        self.room, self.locked, self.most = room, {}, 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if len(self.locked) == self.room:
            return 801
        assert flags == 8  # read only
        self.locked[address] = size
        self.most = max(self.most, sum(self.locked.values()))
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0

    def cudaGetErrorString(self, error: int) -> str:
        return "operation not supported"


@pytest.fixture
def cudart(monkeypatch) -> StandInCudart:
    """torch.cuda as far as measuring registered shards needs it; tensors stay on the CPU."""
    stand_in = StandInCudart(room=1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: stand_in)
    for name in ("Stream", "stream", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return stand_in


def test_registered_shards_are_compared_with_the_reader_and_unlocked(cudart, tmp_path):
    figure = measure_registered(Bench(tmp_path, QUICK, quick=True))
    assert figure.verdict == "reported" and figure.value > 0
    assert [len(rates) for rates in figure.runs.values()] == [QUICK.read_rounds] * 2
    assert cudart.most == pytest.approx(figure.details["locked_gb"] * 1e9) and not cudart.locked


def test_registered_shards_are_skipped_where_cuda_refuses(cudart, tmp_path):
    cudart.room = 1
    figure = measure_registered(Bench(tmp_path, QUICK, quick=True))
    assert figure.verdict == "skipped" and "operation not supported" in figure.reason
    assert not cudart.locked


def test_a_teacher_is_asked_in_each_arithmetic_and_its_answers_are_compared(monkeypatch, tmp_path):
    """On a CPU, which has no TF32: the same answers, and other ones in bfloat16."""
    monkeypatch.delitem(gpu.KERNELS, "float16")
    figure = gpu.measure_teacher(Bench(tmp_path, QUICK, quick=True))
    assert figure.verdict == "reported" and figure.value == figure.details["times_faster"]["tf32"]
    assert all(len(times) == QUICK.online_rounds for times in figure.runs.values())
    apart = {name: max(by.values()) for name, by in figure.details["apart"].items()}
    assert apart["float32"] == apart["tf32"] == apart["cudnn_benchmark"] == 0 < apart["bfloat16"]


def test_steps_that_repeat_are_compared_where_the_environment_allows_it(monkeypatch, tmp_path):
    asked, bench = [], Bench(tmp_path, QUICK, quick=True)
    monkeypatch.setattr(gpu, "use_kernels", lambda device, **how: asked.append(how))
    monkeypatch.delenv(gpu.WORKSPACE, raising=False)
    tried, figure = gpu.measure_steps(bench)
    assert tried.value > 0 and figure.verdict == "skipped"
    assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in figure.reason
    asked.clear()
    monkeypatch.setenv(gpu.WORKSPACE, ":4096:8")
    tried, figure = gpu.measure_steps(bench)
    assert tried.value > 0 and figure.value > 0 and len(figure.runs["plain"]) == QUICK.tax_rounds
    told = [(how["deterministic"], how["benchmark"]) for how in asked]
    plain = (False, False)
    assert told == [plain, (False, True), (True, False)] * (1 + QUICK.tax_rounds) + [plain]


def test_samples_in_the_memory_of_a_gpu_are_compared_with_those_of_the_page_cache(tmp_path):
    """On a CPU, whose memory then holds them: as many steps of each, in turn."""
    bench = Bench(tmp_path, QUICK, quick=True)
    resident = training.open_cached(bench, 4, residency="gpu")
    kinds = {
        name: partial(read, reader)
        for name, reader in (("cached", training.open_cached(bench, 4)), ("resident", resident))
    }
    figure = training.measure_residency(bench, kinds)
    assert figure.value > 0 and set(figure.runs) == {"cached", "resident"}
    assert not resident.resident.find_missing([(0, sample) for sample in range(12)])
    assert training.measure_residency(bench, {}).verdict == "skipped"


def read(reader: BatchReader, num_steps: int) -> None:
    adapter.read_all(reader, adapter.make_batches(list(range(12)), 4)[: max(num_steps, 1)])


def make_source(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 9, (count, 4, 4), np.uint8)
    return {
        "image": np.stack([picture] * 3, axis=-1),
        "label": picture,
        **{name: rng.random((count, 3, 2, 2)).astype(np.float16) for name in ("logits", *LEVELS)},
    }


def test_torchdistill_reads_its_own_files_in_our_order(monkeypatch, tmp_path):
    """A stand-in for its loader, which is called as its own one is."""
    given, source = [], make_source(5)

    def build_data_loader(dataset, config, distributed):
        given.append(config)
        order = config["sampler"]["class_or_func"](dataset)

        def load():
            for sample in order:
                image, label = dataset[sample]
                assert np.array_equal(image, source["image"][sample]) and len(dataset) == 5
                kept = torch.load(tmp_path / f"{sample:04d}.pt", weights_only=True)
                loaded.append(sample)
                yield image, label, {"cached_data": kept}

        return Again(load)

    modules = {"util": {"build_data_loader": build_data_loader}}
    modules["wrapper"] = {"default_idx2subpath": lambda sample: f"{sample:04d}"}
    for name, names in modules.items():
        module = SimpleNamespace(**names)
        monkeypatch.setitem(sys.modules, f"torchdistill.datasets.{name}", module)
    for name in ("torchdistill", "torchdistill.datasets"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    loaded = []
    ((name, read),) = load_by_torchdistill(tmp_path, source, batch_size=2, num_workers=0).items()
    assert name.startswith("torchdistill ") and name.endswith("cached outputs, 0 workers")
    read([[(0, 3), (0, 1)], [(0, 4)]])
    assert loaded == [3, 1, 4] and given[0]["kwargs"] == {"batch_size": 2, "num_workers": 0}
    kept = torch.load(tmp_path / "0003.pt", weights_only=True)
    assert np.array_equal(kept["teacher_outputs"], source["logits"][3].astype(np.float32))
    assert kept["extracted_outputs"]["backbone.low"]["output"].dtype == torch.float32


class Again:
    """Iterates anew each time."""

    def __init__(self, load) -> None:
        self.load = load

    def __iter__(self):
        return self.load()


def test_without_torchdistill_it_is_no_rival(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchdistill.datasets.util", None)
    source = make_source(2)
    assert load_by_torchdistill(tmp_path, source, batch_size=2, num_workers=2) == {}
    assert not list(tmp_path.iterdir())


def test_passes_read_each_sample_once_each():
    assert sorted(shuffle_passes(5, passes=2, seed=0)) == sorted([*range(5), *range(5)])


@pytest.mark.parametrize(
    "text",
    [
        "x",
        pytest.param(None, marks=pytest.mark.nightly),
        pytest.param("{}", marks=pytest.mark.nightly),
    ],
)
def test_a_file_that_is_no_measurement_is_one_line(tmp_path, text):
    path = tmp_path / "bench.json"
    if text is not None:
        path.write_text(text)
    done = run_bench("--markdown", str(path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "it is no file of this program's" in line


@pytest.mark.nightly
def test_several_processes_are_compared_with_one():
    options = [
        "--counts",
        "1,2",
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--num-train",
        "8",
        "--size",
        "64",
    ]
    command = [sys.executable, "-m", "tests.bench.processes", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["| 1", "| 2"] and rows[2][-1].startswith(
        "+0.0, +0.0 points"
    )
    assert all(0 <= float(row[2]) <= 1 and float(row[1]) > 0 for row in rows[2:])
