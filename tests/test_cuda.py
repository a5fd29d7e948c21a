"""The same on a GPU. `make gpu` runs these and what else is marked `cuda`."""

import json
import os

import numpy as np
import pytest
import torch

from kdcache.analysis.fidelity import measure_fidelity
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.config.parser import make_config, merge
from kdcache.errors import SettingsError
from kdcache.machine.devices import REPEATABLE, WORKSPACE, choose_device, use_kernels
from kdcache.metrics import count_confusion
from kdcache.models.fit import fit_teacher
from kdcache.precompute.build import build_cache
from kdcache.report.panels import Predictor
from kdcache.training import loop
from kdcache.training.batches import BatchReader
from kdcache.training.checkpoint import read_checkpoint
from kdcache.training.distill import distill
from kdcache.training.learner import list_arrays, open_learner
from kdcache.training.loop import evaluate, train_step
from kdcache.training.order import plan_epoch
from kdcache.training.processes import Alone
from kdcache.training.run import TrainingEvents
from kdcache.training.run_folder import BEST, LAST
from kdcache.training.settings import resolve_config
from tests.support import together
from tests.support.helpers import check_one_line

os.environ.setdefault(WORKSPACE, REPEATABLE[0])  # for runs that repeat: before the GPU is used
pytestmark = [
    pytest.mark.cuda,
    # torch warns that its refusal of waits is a prototype, and of contexts that it makes itself
    pytest.mark.filterwarnings("default::UserWarning"),
]


def on_cuda(given: dict, **changes: dict) -> dict:
    return merge(
        merge(given, {"teacher": {"device": "cuda"}, "train": {"device": "cuda"}}), changes
    )


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("float32", 2e-3), ("tf32", 0.02), ("bfloat16", 0.1), ("float16", 0.02)],
)
@pytest.mark.parametrize("benchmark", [False, True])
def test_answers_on_a_gpu_are_those_of_the_cpu(
    cache, given, tmp_path, precision, tolerance, benchmark
):
    teacher = {"precision": precision, "cudnn_benchmark": benchmark}
    change = {"teacher": teacher, "cache": {"path": str(tmp_path / "gpu")}}
    if precision == "tf32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("a GPU without TF32")
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
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.benchmark


def test_a_gpu_and_a_cpu_write_one_cache_that_either_finds_faithful(cache, given):
    """The manifest names both, so that the CPU judges by the limits of a GPU."""
    build_cache(make_config(on_cuda(given, augment={"views": 3})))
    devices = read_manifest(cache.cache.path).information["devices"]
    assert devices == sorted(["cpu", torch.cuda.get_device_name()])
    student = {"student": given["student"], "train": {"batch_size": 4}}
    for name in ("cpu", "cuda"):
        asked = merge(student, {"teacher": {"device": name}})
        result = measure_fidelity(cache.cache.path, asked, num_samples=6)
        assert result["failures"] == [] and result["written_on"] == devices


@pytest.mark.parametrize(("field", "name"), [("train", "cuda:9"), ("teacher", "cuda:99")])
def test_a_gpu_that_is_not_there_is_one_line(field, name):
    with pytest.raises(SettingsError) as error:
        choose_device(name, field=f"{field}.device")
    check_one_line(error, f"{field}.device is '{name}', expected auto or one of cpu, cuda, cuda:0")


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


@pytest.fixture
def repeating():
    """What a deterministic run has switched on in this process is off again afterwards."""
    yield
    use_kernels(torch.device("cuda"), deterministic=False, benchmark=False)


@pytest.mark.parametrize("residency", ["ram", "gpu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_repeats_a_run_to_the_last_bit(
    cache, given, tmp_path, repeating, precision, residency
):
    """Twice in one go, and once interrupted after its first epoch."""
    train = {"deterministic": True, "precision": precision, "residency": residency}
    found = []
    for number in range(3):
        folder = {"dir": str(tmp_path / f"run-{number}"), "baseline": False, "resume": True}
        settings = on_cuda(given, train=train, run=folder)
        if number == 2:
            with pytest.raises(KeyboardInterrupt):
                distill(settings, root=cache.cache.path, events=StopAfterFirst())
        outcome = distill(settings, root=cache.cache.path)
        assert outcome.student["compiled"] is False
        found.append(read_checkpoint(outcome.folder / LAST))
    assert torch.are_deterministic_algorithms_enabled()
    for other in found[1:]:
        for name, value in found[0]["model_state_dict"].items():
            assert torch.equal(value, other["model_state_dict"][name]), name
        numbers = ("total", "miou", "per_class_iou")
        assert [[e[n] for n in numbers] for e in found[0]["history"]] == [
            [e[n] for n in numbers] for e in other["history"]
        ]


def test_asked_too_late_a_deterministic_run_is_one_line(cache, given, monkeypatch):
    torch.zeros(1, device="cuda")
    monkeypatch.delenv(WORKSPACE)
    with pytest.raises(SettingsError) as error:
        distill(on_cuda(given, train={"deterministic": True}), root=cache.cache.path)
    check_one_line(error, "CUBLAS_WORKSPACE_CONFIG is unset in a process that has used a GPU")


def test_tried_convolutions_train_a_student(cache, given):
    change = {"train": {"cudnn_benchmark": True}, "run": {"baseline": False}}
    try:
        assert 0 <= distill(on_cuda(given, **change), root=cache.cache.path).student["miou"] <= 1
        assert torch.backends.cudnn.benchmark
    finally:
        use_kernels(torch.device("cuda"), deterministic=False, benchmark=False)


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


@pytest.fixture
def no_waiting():
    """Call it, and from then on torch itself refuses whatever waits for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("residency", ["disk", "gpu"])
def test_a_step_on_a_gpu_waits_once(cache, given, no_waiting, residency):
    """For whether its loss is finite, by an event, which is no wait for the device."""
    config = resolve_config(cache.cache.path, read_manifest(cache.cache.path), on_cuda(given))
    train = open_split(cache.cache.path, "train")
    learner = open_learner(config, train, Alone())
    options = {"batch_size": 4, "device": learner.device, "residency": residency}
    reader = BatchReader(train, arrays=list_arrays(learner), **options)
    batches = list(reader.read([[(0, sample) for sample in range(4)]] * 2))
    train_step(learner, batches[0], where="warm-up")
    no_waiting()
    train_step(learner, batches[1], where="the step")


def test_an_evaluation_batch_on_a_gpu_does_not_wait(cache, given, no_waiting, monkeypatch):
    config = resolve_config(cache.cache.path, read_manifest(cache.cache.path), on_cuda(given))
    train, val = (open_split(cache.cache.path, split) for split in ("train", "val"))
    learner = open_learner(config, train, Alone())
    reader = BatchReader(val, arrays=["image", "label"], batch_size=2, device=learner.device)
    evaluate(learner, reader, num_classes=config.dataset.num_classes, batch_size=2)
    count, seen = loop.count_confusion, []

    def note(*args, **options):
        """Behind the first batch everything is made that is made once."""
        no_waiting()
        seen.append(count(*args, **options))
        return seen[-1]

    def add_up(confusion):
        torch.cuda.set_sync_debug_mode("default")  # the matrix itself is waited for
        return confusion

    monkeypatch.setattr(loop, "count_confusion", note)
    monkeypatch.setattr(learner.processes, "add_up", add_up)
    evaluate(learner, reader, num_classes=config.dataset.num_classes, batch_size=2)
    assert len(seen) == 3


def test_a_teacher_is_fitted_on_a_gpu(given, tmp_path):
    fit = {"epochs": 1, "batch_size": 4, "out": str(tmp_path / "t.pth")}
    assert 0 <= fit_teacher(make_config(on_cuda(given, fit=fit))).miou <= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_processes_on_two_gpus_train_one_student_with_synchronised_batchnorm(cache, given):
    """Over NCCL; a batch has rows for both."""
    settings = on_cuda(given, train={"device": "auto", "compile": "on"}, run={"baseline": False})
    one, two = together.run_together(2, together.train_whole, settings)
    assert np.array_equal(one["tensors"], two["tensors"]) and one["miou"] == two["miou"]
    lines = (make_config(settings).run.dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["processes"] for line in lines] == [2, 2]
