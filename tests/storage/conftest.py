"""A bucket for each test, on a server of its own kind on this machine; caches of every kind, as
folders and packed.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kdcache.cache.pack import pack_cache
from kdcache.storage import open_storage
from kdcache.storage.bucket import Bucket
from tests.support import quick
from tests.support.packed_kinds import KINDS, build
from tests.support.s3_server import CREDENTIALS, Faults, make_bucket, serve_faults, serve_s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture
def use_server(s3_server, monkeypatch) -> Iterator[Callable[[Faults | None], Bucket]]:
    """A new bucket of the server, through a proxy where faults are given, as this process sees it
    from now on.
    """
    with ExitStack() as proxies:

        def use(faults: Faults | None = None) -> Bucket:
            endpoint = (
                proxies.enter_context(serve_faults(s3_server, faults)) if faults else s3_server
            )
            for name, value in {
                **CREDENTIALS,
                "AWS_ENDPOINT_URL": endpoint,
                "no_proxy": "127.0.0.1",
            }.items():
                monkeypatch.setenv(name, value)
            name = f"bucket-{uuid.uuid4().hex}"  # a client is kept by the bucket's name
            make_bucket(s3_server, name)
            return open_storage(f"s3://{name}/caches/one")

        yield use


@pytest.fixture
def bucket(use_server) -> Bucket:
    """Where a cache may be."""
    return use_server()


# --- packed


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
