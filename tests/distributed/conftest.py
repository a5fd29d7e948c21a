"""A small cache for several processes, and the settings of a run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdcache.config.parser import make_config, merge
from kdcache.data.sample_set import write_sample_set
from kdcache.precompute.build import build_cache
from tests.support import quick
from tests.support.together import NUM_TRAIN, NUM_VAL


@pytest.fixture(scope="session")
def quick_root(tmp_path_factory) -> Path:
    """A cache of 13 training and 5 validation samples; its settings lie beside it."""
    folder = tmp_path_factory.mktemp("together")
    write_sample_set(folder / "data", num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=48)
    given = merge(
        quick.quick_given(folder / "data", folder / "cache"), {"train": {"batch_size": 8}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        build_cache(make_config(given))
    (folder / "settings.yaml").write_text(yaml.safe_dump(given))
    return folder / "cache"


@pytest.fixture
def given(quick_root, tmp_path) -> dict:
    settings = yaml.safe_load((quick_root.parent / "settings.yaml").read_text())
    return merge(settings, {"run": {"dir": str(tmp_path / "runs" / "kd"), "baseline": False}})
