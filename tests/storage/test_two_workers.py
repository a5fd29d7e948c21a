"""Workers that do not agree, on one folder or one bucket: one of them is told so, and what is there
stays whole.
"""

import pytest

from kdcache.cache.manifest import read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config, merge
from kdcache.errors import CacheMismatchError
from kdcache.precompute.build import build_cache
from tests.support import quick
from tests.support.helpers import check_one_line, run_at_once

pytestmark = pytest.mark.usefixtures("quick_teacher")


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path):
    return request.getfixturevalue("bucket") if request.param == "bucket" else tmp_path / "cache"


def test_of_two_workers_with_different_settings_one_is_refused(quick_data, root):
    configs = [
        make_config(quick.quick_given(quick_data, root), {"augment": {"seed": seed}})
        for seed in (0, 5)
    ]
    (error,) = run_at_once(build_cache, configs)
    assert isinstance(error, CacheMismatchError)
    kept = read_manifest(root).identity["train"]["augment"]["seed"]
    check_one_line(error, str(root), f"augment.seed is {kept}, expected {5 - kept}", "cache.path")
    findings = verify_cache(root, data=True)
    assert not findings.damage and not findings.unwritten


def test_a_worker_of_an_older_library_is_refused(quick_data, root, monkeypatch):
    given = quick.quick_given(quick_data, root)
    build_cache(make_config(merge(given, {"cache": {"encoding": "half"}})))
    monkeypatch.setattr("kdcache.cache.manifest.FORMAT_VERSION", 2)
    with pytest.raises(CacheMismatchError) as error:
        build_cache(make_config(merge(given, {"cache": {"encoding": "half"}})))
    check_one_line(
        error,
        str(root),
        "format_version is 3, expected 2 to 2",
        "use the kdcache version that wrote it",
    )
