"""A data set of more images than are probed, and the stand-in teacher in every test."""

from pathlib import Path

import pytest

from kdcache.config import Config
from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import write_sample_set
from kdcache.forecast import probe
from tests.support import quick

RANKS = {"low": 2, "mid": 3, "high": 4}


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """A data set of 150 training and 20 validation images. Read only."""
    root = tmp_path_factory.mktemp("many")
    write_sample_set(root, num_train=150, num_val=20, size_px=48)
    return root


@pytest.fixture(autouse=True)
def _quick_teacher(quick_teacher):
    """In every test."""


@pytest.fixture(autouse=True)
def _any_time(monkeypatch):
    """How much is measured may not depend on how fast the machine is."""
    monkeypatch.setattr(probe, "MOST_PROBING_S", float("inf"))


@pytest.fixture
def caches(tmp_path) -> Path:
    """The folder that the cache is to be in."""
    folder = tmp_path / "caches"
    folder.mkdir()
    return folder


@pytest.fixture
def given(many, caches) -> dict:
    few = {"cache": {"shard_samples": 8, "rank": RANKS}, "teacher": {"batch_size": 4}}
    return merge(quick.quick_given(many, caches / "one"), few)


@pytest.fixture
def config(given) -> Config:
    return make_config(given)
