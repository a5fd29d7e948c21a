"""A tiny data set and teacher for everybody. Tests need no GPU, no network and nothing outside the
project.
"""

import logging
import shutil
import signal
from pathlib import Path

import pytest
import torch

from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import CLASS_NAMES, write_sample_set
from kdcache.models import teacher
from kdcache.precompute.build import build_cache
from kdcache.training.distill import distill
from tests.support import quick
from tests.support.tiny_teacher import REAL, use_tiny_teacher

NUM_CLASSES = len(CLASS_NAMES)
SIZE_PX = 48


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/integrity --cache PATH` looks at a cache of yours."""
    what = "the cache tests/integrity looks at (default: a small one made for it)"
    parser.addoption("--cache", type=Path, metavar="PATH", help=what)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `cuda` where there is no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from more, and spinning threads of two processes on two cores slow
    both tenfold.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _hangups_are_heard():
    """Also if the tests run below nohup; children inherit what is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Flushing decides nothing here but the time: what it is for is tested by a ledger, in
    tests/faults/test_power.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _tiny_teacher():
    """The real one has 35 million weights: `real_teacher` is for tests whose subject it is."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_teacher(patch.setattr)
        yield


@pytest.fixture(scope="module")
def real_teacher():
    """Let what builds a teacher build torchvision's, for the rest of a file."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_teacher(patch.setattr, REAL)
        yield


@pytest.fixture(autouse=True)
def _logger_as_it_was():
    """A command shows warnings its own way, or fewer of them, for the rest of its process: here
    only until its test ends, and never from a fixture of many tests.
    """
    reset_logger()
    yield
    reset_logger()


def reset_logger() -> None:
    """kdcache's logger as an import makes it."""
    logger = logging.getLogger("kdcache")
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers = True, []


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory) -> Path:
    """A sample data set of 10 training and 5 validation images, 48x48 pixels. Read only."""
    root = tmp_path_factory.mktemp("data")
    write_sample_set(root, num_train=10, num_val=5, size_px=SIZE_PX)
    return root


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory) -> Path:
    """Weights of a teacher that nobody fitted: its answers are meaningless but exact."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(
        teacher.build_fcn("fcn_resnet50", num_classes=NUM_CLASSES, aux_head=True).state_dict(), path
    )
    return path


@pytest.fixture(scope="session")
def real_teacher_file(tmp_path_factory) -> Path:
    """The same of torchvision's FCN, for programs that tests start."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "real.pth"
    torch.save(REAL("fcn_resnet50", num_classes=NUM_CLASSES, aux_head=True).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def base_given(voc_root, teacher_file) -> dict:
    """Settings of a run that takes seconds."""
    return {
        "dataset": {
            "root": str(voc_root),
            "num_classes": NUM_CLASSES,
            "class_names": list(CLASS_NAMES),
            "size": 32,
            "val_size": SIZE_PX,
            "download": False,
        },
        "augment": {"views": 2},
        "teacher": {"weights": str(teacher_file), "batch_size": 4, "device": "cpu"},
        "cache": {"shard_samples": 4},
        "student": {"pretrained": False, "aspp_channels": 16},
        "train": {"epochs": 2, "batch_size": 4, "device": "cpu"},
    }


@pytest.fixture
def given(base_given, tmp_path) -> dict:
    """`base_given` with folders of this test alone."""
    return merge(
        base_given,
        {"cache": {"path": str(tmp_path / "cache")}, "run": {"dir": str(tmp_path / "runs" / "kd")}},
    )


@pytest.fixture
def config(given) -> Config:
    return make_config(given)


@pytest.fixture(scope="session")
def built_root(base_given, tmp_path_factory) -> Path:
    """A finished cache of `base_given`. Read only; `cache` is a copy to do anything with."""
    root = tmp_path_factory.mktemp("built") / "cache"
    build_cache(make_config(merge(base_given, {"cache": {"path": str(root)}})))
    return root


@pytest.fixture
def cache(built_root, config) -> Config:
    """Settings whose cache is finished."""
    shutil.copytree(built_root, config.cache.path)
    return config


@pytest.fixture(scope="session")
def trained_run(base_given, built_root, tmp_path_factory) -> Path:
    """The folder of a run of two epochs from `built_root`, without a baseline. Read only; copy it
    to do anything with.
    """
    folder = tmp_path_factory.mktemp("trained") / "kd"
    run = {"cache": {"path": str(built_root)}, "run": {"dir": str(folder), "baseline": False}}
    distill(merge(base_given, run), root=built_root)
    return folder


@pytest.fixture
def run(trained_run, tmp_path) -> Path:
    """A copy of `trained_run`."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def quick_data(tmp_path_factory) -> Path:
    """A data set of 3 training and 2 validation images, for quick caches. Read only."""
    return quick.write_quick_data(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="session")
def bare_data(tmp_path_factory) -> Path:
    """The same, and 3 images in no list, which `dataset.unlabelled rest` finds. Read only."""
    return quick.write_unlabelled(quick.write_quick_data(tmp_path_factory.mktemp("bare")))


@pytest.fixture
def quick_teacher(monkeypatch):
    """The stand-in teacher of `quick` in place of the real one."""
    monkeypatch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
