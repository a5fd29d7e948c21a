"""Leases in a bucket: kept by who lives, taken from who is dead, and useless to who was only
stopped.
"""

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdcache.cache.layout import shard_key
from kdcache.cache.lifecycle import open_for_writing
from kdcache.cache.manifest import read_manifest, write_manifest
from kdcache.cache.verify import verify_cache
from kdcache.cache.writer import GroupContents, write_group
from kdcache.config.parser import make_config
from kdcache.errors import CacheError
from kdcache.precompute.build import build_cache, prepare_job
from kdcache.precompute.group import compute_group
from kdcache.progress import Silent
from kdcache.storage import bucket_lease as leases
from kdcache.storage.bucket import _holds
from kdcache.storage.bucket_client import AlreadyThereError
from kdcache.storage.bucket_lease import put_own
from kdcache.storage.lock import LeaseLostError
from tests.support import quick
from tests.support.helpers import check_one_line, run_at_once
from tests.support.s3_server import Faults
from tests.support.stored import read_all

pytestmark = pytest.mark.usefixtures("quick_teacher")
LOST_S = 0.4


@pytest.fixture(autouse=True)
def _short_times(monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", LOST_S / 6)
    monkeypatch.setattr(leases, "LOST_S", LOST_S)
    monkeypatch.setattr(leases, "POLL_S", LOST_S / 8)
    monkeypatch.setattr(leases, "_seen", {})


def stop(lease) -> None:
    """Its renewing, as SIGSTOP would."""
    lease.released.set()


def test_a_lease_is_held_once_and_given_back(bucket):
    with bucket.take_lease("a") as lease, bucket.take_lease("a") as other:
        assert other is None and lease is not None
        assert bucket.is_held("a") and bucket.read_holder("a").startswith("process ")
    assert not bucket.is_held("a") and not bucket.object("leases/a").exists()


def test_a_living_holder_is_not_robbed(bucket, monkeypatch):
    patient_s = 10 * LOST_S  # a busy machine may keep its renewing thread waiting
    monkeypatch.setattr(leases, "LOST_S", patient_s)
    with bucket.take_lease("a") as lease:
        end_s = time.monotonic() + 1.5 * patient_s
        while time.monotonic() < end_s:
            with bucket.take_lease("a") as other:
                assert other is None
            time.sleep(LOST_S / 2)
        lease.check()


def test_the_lease_of_a_dead_process_is_taken_over_after_a_while(bucket):
    bucket.object("leases/a").create(b"process 1 on another machine, 0\n")
    began_s = time.monotonic()
    with bucket.take_lease("a", wait=True) as lease:
        assert time.monotonic() - began_s >= LOST_S
        lease.check()


def test_a_holder_that_was_stopped_finds_its_lease_gone(bucket):
    with bucket.take_lease("a") as first:
        stop(first)
        with bucket.take_lease("a", wait=True) as second:
            second.check()
            with pytest.raises(LeaseLostError) as error:
                first.check()
            check_one_line(
                error, str(bucket.object("leases/a")), "taken over or removed while it was held"
            )
        assert not first.path.exists()


def test_leaving_a_lost_lease_does_not_remove_the_new_one(bucket):
    with bucket.take_lease("a", wait=True) as late:
        stop(late)
        taken = bucket.take_lease("a", wait=True)
        new = taken.__enter__()
    assert late.lost and bucket.object("leases/a").exists()
    new.check()
    taken.__exit__(None, None, None)


def test_an_answer_that_was_lost_costs_no_lease(use_server):
    bucket = use_server(Faults(0.3, seed=2, kinds=("lost",)))
    for _ in range(4):
        with bucket.take_lease("a", wait=True) as lease:
            for _ in range(3):
                time.sleep(LOST_S / 5)
                lease.check()


@pytest.fixture
def plan(quick_data, bucket):
    plan = prepare_job(make_config(quick.quick_given(quick_data, bucket)), Silent())
    open_for_writing(bucket, plan.manifest)
    return plan


def compute(plan, group) -> GroupContents:
    with ThreadPoolExecutor(1) as pool:
        return compute_group(
            plan.config,
            group,
            splits=plan.splits,
            teacher=plan.teacher,
            encoder=plan.encoder,
            pool=pool,
        )


def changed(contents: GroupContents) -> GroupContents:
    """As another GPU would round it."""
    arrays = {**contents.arrays, "logits": contents.arrays["logits"] + 1}
    return GroupContents(arrays, contents.ids, contents.views)


@pytest.mark.parametrize("late_step", [0, 1, 4, 6, 12])
def test_a_stopped_writer_cannot_spoil_what_another_commits(plan, bucket, late_step, monkeypatch):
    """It stops before its put number `late_step`, after a good look at its lease, and goes on when
    the other has committed.
    """
    group = plan.manifest.layouts["train"].group(0, 0)
    contents = compute(plan, group)
    with bucket.take_lease(group.name) as late:
        checks, check = [], late.check

        def stop_then_go_on():
            check()
            checks.append(1)
            if len(checks) == late_step + 1:
                stop(late)
                with bucket.take_lease(group.name, wait=True) as lease:
                    write_group(bucket, plan.manifest, group, contents=contents, lease=lease)

        monkeypatch.setattr(late, "check", stop_then_go_on)
        if late_step < 7:
            with pytest.raises(LeaseLostError):
                write_group(bucket, plan.manifest, group, contents=changed(contents), lease=late)
        else:
            write_group(bucket, plan.manifest, group, contents=changed(contents), lease=late)
            assert len(checks) == 7
    findings = verify_cache(bucket, data=True)
    assert not findings.damage and findings.num_groups == 1


def test_a_late_commit_is_replaced_by_that_of_the_holder(plan, bucket):
    group = plan.manifest.layouts["train"].group(0, 0)
    contents = compute(plan, group)
    with bucket.take_lease(group.name) as lease:
        write_group(bucket, plan.manifest, group, contents=changed(contents), lease=lease)
        write_group(bucket, plan.manifest, group, contents=contents, lease=lease)
    assert not verify_cache(bucket, data=True).damage


def test_nothing_is_put_over_what_came_meanwhile(bucket, monkeypatch):
    path = bucket.object("x")
    path.create(b"before")
    with bucket.take_lease("a") as lease:
        find_tag = type(path).find_tag

        def look_late(self):
            tag = find_tag(self)
            if self == path and path.read_bytes() == b"before":
                path.put(b"meanwhile")
            return tag

        monkeypatch.setattr(type(path), "find_tag", look_late)
        put_own(path, b"mine", lease=lease)
    assert path.read_bytes() == b"mine"
    with pytest.raises(AlreadyThereError):
        path.create(b"again")


def test_a_stopped_process_does_not_put_old_documents_over_new_ones(quick_data, bucket):
    quick.build_quick(quick_data, bucket, views=1)
    with bucket.lock():
        before = read_manifest(bucket)
        _holds.current.lease.released.set()
        worker = threading.Thread(target=quick.build_quick, args=(quick_data, bucket))
        worker.start()
        worker.join()
        grown = read_manifest(bucket)
        assert grown.layouts["train"].num_views == 2 == grown.complete_views["train"]
        with pytest.raises(LeaseLostError) as error:
            write_manifest(bucket, before)
        check_one_line(error, str(bucket))
    assert read_manifest(bucket) == grown


def test_a_document_that_changed_meanwhile_is_not_replaced(quick_data, bucket):
    """The lease was looked at a moment ago, and is lost all the same."""
    quick.build_quick(quick_data, bucket, views=1)
    path = bucket.object("manifest.json")
    with bucket.lock():
        manifest = read_manifest(bucket)
        newer = path.read_bytes().replace(b" ", b"  ", 1)
        path.put(newer)
        with pytest.raises(
            LeaseLostError,
            match="document was changed by another process meanwhile; run this again",
        ):
            write_manifest(bucket, manifest)
    assert path.read_bytes() == newer


def test_two_workers_at_once_give_the_cache_of_one(quick_data, bucket, tmp_path, monkeypatch):
    whole = quick.build_quick(quick_data, tmp_path / "local")
    monkeypatch.setattr(leases, "LOST_S", 30 * LOST_S)
    configs = [make_config(quick.quick_given(quick_data, bucket)) for _ in range(3)]
    assert run_at_once(build_cache, configs) == [] and read_all(bucket) == read_all(
        whole.cache.path
    )
    assert read_manifest(bucket).complete_views == {"train": 2, "val": 1}


def test_a_killed_worker_in_a_bucket_is_waited_for_and_replaced(quick_data, bucket, tmp_path):
    whole = quick.build_quick(quick_data, tmp_path / "local")
    config = make_config(quick.quick_given(quick_data, bucket))
    group = read_manifest(whole.cache.path).layouts["train"].group(0, 1)
    bucket.object(f"leases/{group.name}").create(b"process 1 on a machine that burnt, 0\n")
    spec = read_manifest(whole.cache.path).layouts["train"].array("image")
    bucket.object(shard_key(spec, group)).create(b"what it had put")
    build_cache(config)
    assert read_all(bucket) == read_all(whole.cache.path)


# --- stores that cannot be used


@pytest.mark.parametrize(
    "ignored", [("if-none-match",), ("if-match",), ("if-none-match", "if-match")]
)
def test_a_bucket_without_conditional_put_is_refused(quick_data, use_server, ignored):
    bucket = use_server(Faults(0.0, ignored=ignored))
    with pytest.raises(CacheError) as error:
        quick.build_quick(quick_data, bucket)
    check_one_line(
        error, bucket.bucket, "no conditional put (If-None-Match, If-Match), expected one"
    )
    assert read_all(bucket) == {}


def test_a_store_that_says_it_has_no_conditional_put_is_refused(quick_data, bucket, monkeypatch):
    def refuse(probe):
        raise OSError(
            errno.EIO,
            "the store does not answer as it should: 501 Not Implemented (NotImplemented)",
        )

    monkeypatch.setattr("kdcache.storage.bucket._find_conditions", refuse)
    with pytest.raises(CacheError, match="bucket has no conditional put"):
        quick.build_quick(quick_data, bucket)


@pytest.mark.parametrize("kind", ["denied", "skewed"])
def test_refused_access_is_one_line(kind, quick_data, use_server):
    faults = Faults(0.0, kinds=(kind,))
    bucket = use_server(faults)
    quick.build_quick(quick_data, bucket)
    faults.share = 1.0
    for act in (lambda: read_manifest(bucket), lambda: quick.build_quick(quick_data, bucket)):
        with pytest.raises(CacheError) as error:
            act()
        check_one_line(
            error,
            str(bucket),
            "access is denied, 403",
            "AWS_PROFILE",
            "their rights and this machine's clock",
        )
