"""A bucket for each test, on a server of its own kind on this machine."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kdcache.storage import open_storage
from kdcache.storage.bucket import Bucket
from tests.support.s3_server import CREDENTIALS, Faults, make_bucket, serve_faults, serve_s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture
def use_server(s3_server, monkeypatch) -> Iterator[Callable[[Faults | None], Bucket]]:
    """A new bucket of the server, through a proxy where faults are given, as this process sees it from now on."""
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
