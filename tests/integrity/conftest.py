"""The cache these tests look at: yours with `pytest tests/integrity --cache PATH`, else a small one
made here.

Run it where phase one ran, so that relative paths in the cache's settings lead to the data set.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdcache.cache.layout import SPLITS
from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheError
from tests.integrity.colour_set import Change, build_colour_cache, write_colour_set
from tests.integrity.opened import Opened, open_cache_whole

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --cache, leave out the tests of the checks themselves; a folder that is no cache is one
    line.
    """
    root = config.getoption("--cache")
    if root is None:
        return
    try:
        read_manifest(root)
    except CacheError as error:
        raise pytest.UsageError(f"--cache {error}") from None
    doctored = [
        item
        for item in items
        if item.path.parent == HERE and item.path.name.startswith("test_doctored")
    ]
    config.hook.pytest_deselected(items=doctored)
    items[:] = [item for item in items if item not in doctored]


@pytest.fixture(scope="session")
def given_root(request) -> Path | None:
    """The cache named by --cache."""
    return request.config.getoption("--cache")


@pytest.fixture(scope="session")
def colour_data(tmp_path_factory) -> Path:
    """A data set whose classes are told by colour. Read only."""
    return write_colour_set(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def colour_root(colour_data, tmp_path_factory) -> Path:
    """A cache of it, by a teacher that sees colours. Read only."""
    return build_colour_cache(colour_data, tmp_path_factory.mktemp("integrity") / "cache")


@pytest.fixture(scope="session")
def cache_root(given_root, request) -> Path:
    """The cache that is looked at."""
    return given_root or request.getfixturevalue("colour_root")


@pytest.fixture(scope="session")
def seed(given_root) -> int:
    """Of what is drawn from the cache: from the system's noise for yours, so that repeated runs
    come to see all of it.
    """
    return random.SystemRandom().getrandbits(64) if given_root else 0


@pytest.fixture(scope="session")
def opened(cache_root, seed) -> Opened:
    """Its complete views."""
    return open_cache_whole(cache_root, seed=seed)


@pytest.fixture(scope="session", params=SPLITS)
def split(request, opened) -> str:
    """Each split that has a complete view."""
    if request.param not in opened.readers:
        pytest.skip(f"no view of {request.param} is complete yet")
    return request.param


@pytest.fixture
def doctor(colour_data, tmp_path) -> Callable[[Change], Path]:
    """Builds a cache with a change to what its groups hold, made before they are committed:
    `verify_cache` cannot see it.
    """

    def build(change: Change) -> Path:
        root = build_colour_cache(colour_data, tmp_path / "doctored", change=change)
        assert not verify_cache(root, data=True).damage
        return root

    return build


@pytest.fixture
def true_copy(colour_root, tmp_path) -> Path:
    """A copy of the true cache, to do anything with."""
    return shutil.copytree(colour_root, tmp_path / "copy")
