"""The same on a GPU. Skipped where there is none; `pytest tests/test_cuda.py` is the whole check on
a machine with one.
"""

import json

import numpy as np
import pytest
import torch

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config, merge
from kdcache.metrics import count_confusion
from kdcache.models.fit import fit_teacher
from kdcache.precompute.build import build_cache
from kdcache.report.panels import Predictor
from kdcache.training.batches import BatchReader
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import distill
from kdcache.training.learner import list_arrays, open_learner
from kdcache.training.loop import compute_step, train_step
from kdcache.training.order import plan_epoch
from kdcache.training.processes import Alone
from kdcache.training.run import TrainingEvents
from kdcache.training.run_folder import BEST, LAST
from kdcache.training.settings import resolve_config
from tests.support import together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def on_cuda(given: dict, **changes: dict) -> dict:
    return merge(
        merge(given, {"teacher": {"device": "cuda"}, "train": {"device": "cuda"}}), changes
    )


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.1), ("float16", 0.02)]
)
def test_answers_on_a_gpu_are_those_of_the_cpu(cache, given, tmp_path, precision, tolerance):
    change = {"teacher": {"precision": precision}, "cache": {"path": str(tmp_path / "gpu")}}
    other = make_config(on_cuda(given, **change))
    build_cache(other)
    ours, theirs = (open_split(c.cache.path, "train") for c in (cache, other))
    for name in ("logits", "low", "mid", "high"):
        expected, found = (
            ours.read(name, 1, 9).astype(np.float32),
            theirs.read(name, 1, 9).astype(np.float32),
        )
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert np.array_equal(ours.read("image", 1, 9), theirs.read("image", 1, 9))


@pytest.mark.parametrize("residency", ["disk", "ram", "gpu"])
def test_batches_on_a_gpu_are_those_of_the_cpu(cache, residency):
    reader = open_split(cache.cache.path, "train")
    plan = plan_epoch(num_samples=10, num_views=2, batch_size=3, seed=0, epoch=0) * 5
    arrays = ["image", "logits", "high"]
    cpu = BatchReader(reader, arrays=arrays, batch_size=3, device=torch.device("cpu"))
    gpu = BatchReader(
        reader, arrays=arrays, batch_size=3, device=torch.device("cuda"), residency=residency
    )
    for expected, found in zip(cpu.read(plan), gpu.read(plan), strict=True):
        assert all(torch.equal(expected.arrays[name], found.arrays[name].cpu()) for name in arrays)


def test_a_student_trains_and_resumes_on_a_gpu(cache, given):
    outcome = distill(on_cuda(given), root=cache.cache.path)
    assert outcome.student["epochs"] == 2 and 0 <= outcome.student["miou"] <= 1
    again = distill(on_cuda(given, run={"resume": True}), root=cache.cache.path)
    assert again.student == outcome.student


class StopAfterFirst(TrainingEvents):
    def epoch_finished(self, config, history, *, folder):
        if len(history) == 1:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_on_a_gpu(cache, given, tmp_path):
    """Dropout and data order are those of a run in one go; sums of atomics differ a little."""
    exact = {"train": {"precision": "float32", "compile": "off"}, "run": {"baseline": False}}
    whole = distill(on_cuda(given, **exact), root=cache.cache.path)
    cut = on_cuda(merge(given, exact), run={"dir": str(tmp_path / "cut"), "resume": True})
    with pytest.raises(KeyboardInterrupt):
        distill(cut, root=cache.cache.path, events=StopAfterFirst())
    resumed = distill(cut, root=cache.cache.path)
    ours, theirs = (read_checkpoint(run.folder / LAST) for run in (resumed, whole))
    for name in ("random_state", "cuda_random_state"):
        assert torch.equal(ours[name], theirs[name])
    for found, expected in zip(ours["history"], theirs["history"], strict=True):
        assert found["total"] == pytest.approx(expected["total"], rel=5e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_epoch_and_the_report_count_the_same_pixels_on_a_gpu(cache, given, precision):
    half = {"train": {"precision": precision, "epochs": 1}, "run": {"baseline": False}}
    outcome = distill(on_cuda(given, **half), root=cache.cache.path)
    expected = read_checkpoint(outcome.folder / BEST)["confusion"]
    reader, panels = (
        open_split(cache.cache.path, "val"),
        Predictor(outcome.config, outcome.folder / BEST),
    )
    found = torch.zeros_like(expected)
    for number in range(len(reader.sample_ids)):
        image, label = (reader.read(name, 0, number) for name in ("image", "label"))
        both = torch.from_numpy(panels.predict(image))[None], torch.from_numpy(label)[None]
        found += count_confusion(*both, num_classes=len(expected))
    assert (found - expected).abs().sum() <= 2e-3 * expected.sum()  # a batch rounds otherwise


def test_a_file_of_a_gpu_is_read_without_one(cache, given):
    outcome = distill(on_cuda(given, run={"baseline": False}), root=cache.cache.path)
    assert b"cuda" not in (outcome.folder / LAST).read_bytes().replace(b"cuda_random_state", b"")


def test_a_step_on_a_gpu_waits_once(cache, given):
    """torch itself refuses whatever waits for the device."""
    config = resolve_config(cache.cache.path, read_manifest(cache.cache.path), on_cuda(given))
    train = open_split(cache.cache.path, "train")
    learner = open_learner(config, train, Alone())
    options = {"batch_size": 4, "device": learner.device}
    reader = BatchReader(train, arrays=list_arrays(learner), **options)
    batches = list(reader.read([[(0, sample) for sample in range(4)]] * 2))
    train_step(learner, batches[0], where="warm-up")
    torch.cuda.set_sync_debug_mode("error")
    try:
        terms = compute_step(learner, batches[1])
        terms.total.backward()
        learner.optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_teacher_is_fitted_on_a_gpu(given, tmp_path):
    fit = {"epochs": 1, "batch_size": 4, "out": str(tmp_path / "t.pth")}
    assert 0 <= fit_teacher(make_config(on_cuda(given, fit=fit))) <= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_processes_on_two_gpus_train_one_student_with_synchronised_batchnorm(cache, given):
    """Over NCCL; a batch has rows for both."""
    settings = on_cuda(given, train={"device": "auto", "compile": "on"}, run={"baseline": False})
    one, two = together.run_together(2, together.train_whole, settings)
    assert np.array_equal(one["tensors"], two["tensors"]) and one["miou"] == two["miou"]
    lines = (make_config(settings).run.dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in lines] == [2, 2]
