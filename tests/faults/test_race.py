"""Two writers never harm each other: races, a writer that was stopped and goes on late, leases left
behind, wrong clocks.
"""

import os
import shutil
import signal
import time

import pytest

from kdcache.cache.verify import verify_cache
from kdcache.storage import open_storage
from tests.faults import children
from tests.faults.committed import committed_files
from tests.support import quick


def check_whole(root, whole) -> None:
    assert quick.snapshot(root) == whole
    findings = verify_cache(root, data=True)
    assert not findings.damage and findings.num_groups == len(quick.GROUPS)


@pytest.mark.parametrize(
    "count",
    [
        4,
        pytest.param(8, marks=pytest.mark.nightly),
        pytest.param(100, marks=pytest.mark.exhaustive),
    ],
)
def test_writers_that_race_commit_each_group_once(quick_data, whole, tmp_path, count):
    for race in range(count):
        root, log = tmp_path / f"race{race}", tmp_path / f"log{race}"
        log.mkdir()
        given = quick.quick_given(quick_data, root)
        writers = [children.start(children.build_and_log, given, log) for _ in range(2 + race % 2)]
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0] * len(writers)
        committed = [name for path in log.iterdir() for name in path.read_text().split()]
        assert sorted(committed) == sorted(quick.GROUPS)
        check_whole(root, whole)


def wait_until_stopped(child) -> None:
    """Until the child has sent itself SIGSTOP."""
    for _ in range(2000):
        with open(f"/proc/{child.pid}/stat") as file:  # noqa: PTH123
            if file.read().rsplit(")", 1)[1].split()[0] == "T":
                return
        time.sleep(0.01)
    raise AssertionError("the child did not stop")


@pytest.fixture
def stopped(quick_data, tmp_path, monkeypatch):
    """A writer that stands still in the middle of a group, its lease and those of the next held;
    and the cache it writes.
    """
    root = tmp_path / "cache"
    with monkeypatch.context() as patch:
        steps = children.meet(children.stop, step=-2, setattr=patch.setattr)
        quick.build_quick(quick_data, tmp_path / "other")
    middle = [k for k, name in enumerate(steps) if name == "rename"][
        -12
    ]  # some shards of a group have their names
    child = children.start(
        children.build, quick.quick_given(quick_data, root), children.stop, middle
    )
    wait_until_stopped(child)
    yield child, root
    child.kill()
    child.join()


def test_a_stopped_writers_group_is_waited_for(stopped, quick_data, whole):
    child, root = stopped
    second = children.start(children.build, quick.quick_given(quick_data, root))
    second.join(1.5)
    held = {path.name for path in (root / "leases").iterdir()}
    assert second.exitcode is None and 1 <= len(held) <= children.hire(1)().most_groups
    committed = {path.stem for path in root.glob("commits/*.json")}
    assert committed == quick.GROUPS - held  # it has written all others and waits
    os.kill(child.pid, signal.SIGCONT)
    for writer in (child, second):
        writer.join(60)
        assert writer.exitcode == 0
    check_whole(root, whole)


def test_a_late_writer_whose_lease_was_removed_never_replaces_a_committed_file(
    stopped, quick_data, whole
):
    """Somebody takes the lease for stale and removes it by hand: the group is written by the next,
    the late one gives up.
    """
    child, root = stopped
    for held in (root / "leases").iterdir():
        held.unlink()
    assert children.run(children.build, quick.quick_given(quick_data, root)) == 0
    before = committed_files(root)
    os.kill(child.pid, signal.SIGCONT)
    child.join(60)
    assert child.exitcode == 3 and children.error_file(root).read_text().startswith(
        "LeaseLostError"
    )
    assert committed_files(root) == before
    check_whole(root, whole)


@pytest.mark.parametrize("shift_s", [-(10**9), 10**9])
def test_no_clock_matters(whole_root, quick_data, whole, tmp_path, shift_s):
    """A held lease from the far past or future is held; a dead one of any age is taken over."""
    root = tmp_path / "cache"
    shutil.copytree(whole_root, root)
    (root / "leases").mkdir(exist_ok=True)
    moment = time.time() + shift_s
    with open_storage(root).take_lease("train-v0000-g00000"):
        os.utime((root / "leases/train-v0000-g00000"), (moment, moment))
        with open_storage(root).take_lease("train-v0000-g00000") as second:
            assert second is None
    dead = root / "leases/train-v0000-g00000"
    dead.write_text("process 1 on another-machine\n")
    os.utime(dead, (moment, moment))
    (root / "commits/train-v0000-g00000.json").unlink()
    quick.build_quick(quick_data, root)
    check_whole(root, whole)
    assert not dead.exists()
