"""Caches of every kind, as folders and packed."""

import shutil
from pathlib import Path

import pytest

from kdcache.cache.pack import pack_cache
from tests.packed.kinds import KINDS, build
from tests.support import quick


@pytest.fixture(scope="session")
def roots(quick_data, tmp_path_factory) -> dict[str, Path]:
    """The same cache of every kind. Read only."""
    folder = tmp_path_factory.mktemp("kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.precompute.build.build_teacher", quick.make_quick_teacher)
        return {name: build(quick_data, folder / name, **cache) for name, cache in KINDS.items()}


@pytest.fixture(scope="session")
def files(roots, tmp_path_factory) -> dict[str, Path]:
    """Each of them packed. Read only."""
    folder = tmp_path_factory.mktemp("packed")
    for name, root in roots.items():
        pack_cache(root, folder / f"{name}.h5")
    return {name: folder / f"{name}.h5" for name in roots}


@pytest.fixture
def root(roots, tmp_path) -> Path:
    """The raw cache, of this test alone."""
    return Path(shutil.copytree(roots["raw"], tmp_path / "cache"))


@pytest.fixture
def file(files, tmp_path) -> Path:
    """The raw cache packed, of this test alone."""
    return Path(shutil.copy(files["raw"], tmp_path / "one.h5"))
