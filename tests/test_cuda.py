"""The same on a GPU. Skipped where there is none; `pytest tests/test_cuda.py` is the whole check on
a machine with one.
"""

import json

import numpy as np
import pytest
import torch

from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config, merge
from kdcache.models.fit import fit_teacher
from kdcache.precompute.build import build_cache
from kdcache.training.batches import BatchReader
from kdcache.training.distill import distill
from kdcache.training.order import plan_epoch
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


def test_a_teacher_is_fitted_on_a_gpu(given, tmp_path):
    fit = {"epochs": 1, "batch_size": 4, "out": str(tmp_path / "t.pth")}
    assert 0 <= fit_teacher(make_config(on_cuda(given, fit=fit))) <= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_processes_on_two_gpus_train_one_compiled_student_with_synchronised_batchnorm(
    cache, given
):
    """Over NCCL; a batch has rows for both."""
    settings = on_cuda(given, train={"device": "auto", "compile": "on"}, run={"baseline": False})
    one, two = together.run_together(2, together.train_whole, settings)
    assert np.array_equal(one["tensors"], two["tensors"]) and one["miou"] == two["miou"]
    lines = (make_config(settings).run.dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in lines] == [2, 2]
