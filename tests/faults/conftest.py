"""Quick caches for fault tests: a data set and an uninterrupted build for all, the stand-in teacher
in every test.
"""

import shutil
from pathlib import Path

import pytest

from tests.faults import children
from tests.support import quick


@pytest.fixture(autouse=True)
def _quick_teacher(quick_teacher):
    """In every test."""


@pytest.fixture(autouse=True)
def _no_fidelity(monkeypatch):
    """What phase one measures at its end needs a real teacher and forty steps, and is tested
    elsewhere.
    """
    monkeypatch.setattr("cache_teacher.building._measure_fidelity", lambda *_: None)


@pytest.fixture(autouse=True)
def _one_writer(monkeypatch):
    """Whatever the machine: the steps on the disk then have one order, so that a fault at each of
    them can be told.
    """
    monkeypatch.setattr("kdcache.precompute.pipeline.choose_crew", children.hire(1))


@pytest.fixture
def here(world, tmp_path, monkeypatch) -> Path:
    """A copy of `world`, a fixture of the test's own file, which is the current folder."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def whole_root(quick_data, tmp_path_factory) -> Path:
    """A cache built without interruption. Read only."""
    root = tmp_path_factory.mktemp("whole") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(quick_data, root)
    return root


@pytest.fixture(scope="session")
def bare_root(bare_data, tmp_path_factory) -> Path:
    """The same with unlabelled images. Read only."""
    root = tmp_path_factory.mktemp("bare") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        quick.build_quick(bare_data, root, unlabelled="rest")
    return root


@pytest.fixture(scope="session")
def whole(whole_root) -> dict[str, bytes]:
    """Its files."""
    return quick.snapshot(whole_root)


@pytest.fixture
def one_view(quick_data, tmp_path) -> dict[str, bytes]:
    """Files of a cache with one view, built without interruption: each kind of step is in it."""
    quick.build_quick(quick_data, tmp_path / "one_view", views=1)
    return quick.snapshot(tmp_path / "one_view")
