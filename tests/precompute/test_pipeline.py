"""Phase one's pipeline: stages overlap, memory is bounded, an error anywhere leaves nothing behind,
the bytes are exact.
"""

import errno
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kdcache import disk
from kdcache.cache.lifecycle import find_missing_groups, open_for_writing
from kdcache.cache.writer import write_group
from kdcache.config.parser import make_config
from kdcache.data import pictures
from kdcache.errors import CacheError, DataError, TeacherError
from kdcache.precompute import build, pipeline
from kdcache.precompute import group as shard_group
from kdcache.precompute.group import GroupAnswers, compute_group
from kdcache.precompute.pipeline import Crew, Pipeline, choose_crew
from kdcache.progress import Silent
from kdcache.storage import open_storage
from kdcache.storage.lock import LeaseLostError
from tests.support import quick
from tests.support.helpers import check_one_line
from tests.support.quick import snapshot

NUM_VIEWS = 5  # 11 groups of 2 samples or 1: one of val, two a view
PATIENCE_S = 60.0  # for what happens at once, on a machine however busy


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return quick.write_quick_data(tmp_path_factory.mktemp("quick"))


@pytest.fixture
def job(data_root, tmp_path, monkeypatch):
    """A cache whose folder is ready and empty, the stand-in teacher, two writers."""
    monkeypatch.setattr(build, "build_teacher", quick.make_quick_teacher)
    monkeypatch.setattr(pipeline, "choose_crew", lambda *_: Crew(drawers=2, writers=2, ahead=1))
    return make_job(make_config(quick.quick_given(data_root, tmp_path / "cache", views=NUM_VIEWS)))


def make_job(config):
    job = build.prepare_job(config, Silent())
    open_for_writing(config.cache.path, job.manifest)
    return job


def all_groups(job):
    return [
        g
        for split in ("val", "train")
        for g in find_missing_groups(job.storage, job.manifest, split)
    ]


def layout(job, split):
    return job.manifest.layouts[split]


def ignore(group, size_bytes):
    """Of progress."""


def write_all(job):
    with Pipeline(job, ignore) as writing:
        assert writing.write(all_groups(job)) == []
    return writing


def write_serially(job):
    """What the pipeline replaces: one step after the other."""
    root = job.config.cache.path
    for group in all_groups(job):
        with open_storage(root).take_lease(group.name) as lease, ThreadPoolExecutor(2) as pool:
            asked = {"teacher": job.teacher, "encoder": job.encoder}
            contents = compute_group(job.config, group, splits=job.splits, pool=pool, **asked)
            write_group(open_storage(root), job.manifest, group, contents=contents, lease=lease)


def committed(job) -> set[str]:
    return {path.stem for path in job.config.cache.path.glob("commits/*.json")}


def replace_teacher(job, answer) -> None:
    """`answer(true, call)` instead of the stand-in's group, `call` from 0; a call is a group."""
    calls, original = iter(range(10**6)), quick.QuickTeacher.__call__
    kind = type(
        "Changed",
        (quick.QuickTeacher,),
        {"__call__": lambda self, x: answer(original(self, x), next(calls))},
    )
    job.teacher.__class__ = kind


@pytest.mark.parametrize("writers", [1, 3])
def test_the_bytes_are_those_of_one_step_after_the_other(
    config, given, tmp_path, monkeypatch, writers
):
    monkeypatch.setattr(
        pipeline, "choose_crew", lambda *_: Crew(drawers=2, writers=writers, ahead=2)
    )
    serial = make_job(config)
    write_serially(serial)
    given["cache"]["path"] = str(tmp_path / "overlapped")
    job = make_job(make_config(given))
    groups = all_groups(job)
    assert sorted(write_all(job).written) == sorted(groups)
    assert snapshot(job.config.cache.path) == snapshot(config.cache.path)


def test_the_next_group_is_drawn_while_the_teacher_answers(job, monkeypatch):
    drawn = threading.Event()
    make_view = shard_group.draw_view

    def make_view_and_tell(config, sample, *, split, view):
        if split == "train":  # val is one group, the first
            drawn.set()
        return make_view(config, sample, split=split, view=view)

    def answer_when_drawn(true, call):
        assert drawn.wait(PATIENCE_S), "nothing was drawn beside the first question"
        return true

    monkeypatch.setattr(shard_group, "draw_view", make_view_and_tell)
    replace_teacher(job, answer_when_drawn)
    write_all(job)


def test_the_teacher_goes_on_and_groups_are_written_at_once(job, monkeypatch):
    """The first two writers wait for each other and for the question about the third group."""
    third_asked, both_write = threading.Event(), threading.Barrier(2)

    def write_when_asked(root, manifest, group, **kwargs):
        if group.view == 0 and group.index == 0:  # the first group of val, and of train
            both_write.wait(PATIENCE_S)
            assert third_asked.wait(PATIENCE_S), "the teacher waits for the writers"
        return write_group(open_storage(root), manifest, group, **kwargs)

    def answer_and_tell(true, call):
        if call == 2:
            third_asked.set()
        return true

    monkeypatch.setattr(shard_group, "write_group", write_when_asked)
    replace_teacher(job, answer_and_tell)
    assert len(write_all(job).written) == 11


def test_no_more_groups_than_stated_are_on_the_way(job, monkeypatch):
    """Writers stand still until memory is full; it never gets fuller, then or later."""
    crew, root, full = pipeline.choose_crew(1), job.config.cache.path, threading.Event()
    alive, most = [], {"answers": 0, "leases": 0}

    class Counted(GroupAnswers):
        def __init__(self, group, views, **options):
            super().__init__(group, views, **options)
            alive.append(group.name)
            weakref.finalize(
                self.drawn.arrays["image"], alive.pop
            )  # perhaps another's name, but the number is right
            most["answers"] = max(most["answers"], len(alive))
            most["leases"] = max(most["leases"], sum(1 for _ in (root / "leases").iterdir()))
            if len(alive) == 1 + crew.writers:
                full.set()

    def write_when_full(*args, **kwargs):
        assert full.wait(PATIENCE_S), "there is room, but the teacher waits"
        return write_group(*args, **kwargs)

    monkeypatch.setattr(pipeline, "GroupAnswers", Counted)
    monkeypatch.setattr(shard_group, "write_group", write_when_full)
    write_all(job)
    assert most == {"answers": 1 + crew.writers, "leases": crew.most_groups}


def fail_drawing(job, monkeypatch):
    bad = job.splits["train"].samples[2]  # alone in the second group of each view
    monkeypatch.setattr(
        shard_group, "read_sample", lambda config, sample: read_or_fail(config, sample, bad)
    )
    return DataError, "train-v0000-g00001"


def read_or_fail(config, sample, bad):
    if sample == bad:
        raise DataError(f"{sample.image_path}: image is unreadable")
    return pictures.read_sample(config, sample)


def fail_asking(job, monkeypatch, error=TeacherError):
    def answer(true, call):
        if call == 2:
            raise error("no answer")
        return true

    replace_teacher(job, answer)
    return error, "train-v0000-g00001"


def interrupt(job, monkeypatch):
    return fail_asking(job, monkeypatch, KeyboardInterrupt)


def overflow(job, monkeypatch):
    def answer(true, call):
        if call == 2:
            true["mid"][0, 1, 2, 0] = float("-inf")
        return true

    replace_teacher(job, answer)
    return TeacherError, "train-v0000-g00001"


def fill_disk(job, monkeypatch, error=None):
    error, original = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), disk.write_file

    def write_file(path, parts):
        if "train/mid/c/0/1" in str(path):
            raise error
        original(path, parts)

    monkeypatch.setattr(disk, "write_file", write_file)
    return (CacheError if isinstance(error, OSError) else type(error)), "train-v0000-g00001"


def break_writer(job, monkeypatch):
    return fill_disk(job, monkeypatch, SystemExit("of a thread"))


def lose_lease(job, monkeypatch):
    def write_without(root, manifest, group, **kwargs):
        if group.name == "train-v0000-g00001":
            (root.folder / "leases" / group.name).unlink()
        return write_group(root, manifest, group, **kwargs)

    monkeypatch.setattr(shard_group, "write_group", write_without)
    return LeaseLostError, "train-v0000-g00001"


@pytest.mark.parametrize("writers", [1, 2])
@pytest.mark.parametrize(
    "fail",
    [fail_drawing, fail_asking, interrupt, overflow, fill_disk, break_writer, lose_lease],
    ids=lambda f: f.__name__,
)
def test_an_error_leaves_no_commit_of_its_group_no_lease_and_no_thread(
    job, monkeypatch, tmp_path, fail, writers
):
    monkeypatch.setattr(
        pipeline, "choose_crew", lambda *_: Crew(drawers=2, writers=writers, ahead=1)
    )
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        error, group = fail(job, patch)
        with pytest.raises(error):
            write_all(job)
    assert threading.active_count() == threads
    assert not list((job.config.cache.path / "leases").iterdir())
    begun = {"val-v0000-g00000", "train-v0000-g00000"}
    in_flight = {"train-v0001-g00000", "train-v0001-g00001"}  # others that writers may have had
    assert begun - committed(job) <= ({"train-v0000-g00000"} if writers > 1 else set())
    assert committed(job) <= begun | in_flight and group not in committed(job)

    job.teacher.__class__ = quick.QuickTeacher
    write_all(job)
    whole = make_job(
        make_config(quick.quick_given(job.config.dataset.root, tmp_path / "whole", views=NUM_VIEWS))
    )
    write_serially(whole)
    assert snapshot(job.config.cache.path) == snapshot(whole.config.cache.path)


def test_what_the_teacher_was_asked_is_committed_before_an_interruption_ends(job, monkeypatch):
    """Ctrl-C finds both writers at work: their groups are kept."""
    interrupted = threading.Event()

    def write_late(*args, **kwargs):
        assert interrupted.wait(PATIENCE_S)
        return write_group(*args, **kwargs)

    def answer(true, call):
        if call == 2:
            interrupted.set()
            raise KeyboardInterrupt
        return true

    monkeypatch.setattr(shard_group, "write_group", write_late)
    replace_teacher(job, answer)
    with pytest.raises(KeyboardInterrupt):
        write_all(job)
    assert committed(job) == {"val-v0000-g00000", "train-v0000-g00000"}


def test_a_writers_error_is_raised_before_the_teacher_is_asked_again(job, monkeypatch):
    """The teacher is in the middle of the next group, whose second batch is never asked about; the
    first error is the one.
    """
    object.__setattr__(job.config.teacher, "batch_size", 1)
    failed, calls = threading.Event(), []

    def refuse(*args, **kwargs):
        failed.set()
        raise CacheError("the disk is gone")

    def answer(true, call):
        calls.append(call)
        if call == 2:  # the first of the second group
            assert failed.wait(PATIENCE_S)
            while writing._error is None:  # it is noted a moment later
                time.sleep(0.001)
        return true

    monkeypatch.setattr(shard_group, "write_group", refuse)
    replace_teacher(job, answer)
    with (
        pytest.raises(CacheError, match="the disk is gone"),
        Pipeline(job, ignore) as writing,
    ):
        writing.write(all_groups(job))
    assert calls in ([0, 1], [0, 1, 2]) and not committed(
        job
    )  # it may be noted before the second group is begun


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -70_000.0])
def test_a_value_that_float16_cannot_hold_is_named_by_sample_and_level(job, value):
    def answer(true, call):
        if call == 1:
            true["mid"][1, 1, 2, 0] = value
            true["high"][0, 0, 0, 0] = value  # a later level, though an earlier sample
        return true

    replace_teacher(job, answer)
    with pytest.raises(TeacherError) as error:
        write_all(job)
    sample = job.splits["train"].samples[1].id
    words = f"teacher's mid reaches {abs(value):g}, expected finite values up to 65504"
    check_one_line(error, f"sample '{sample}': {words}")


def test_batches_never_cross_a_shard_group(job):
    sizes = []
    object.__setattr__(job.config.teacher, "batch_size", 3)
    replace_teacher(job, lambda true, call: sizes.append(len(true["logits"])) or true)
    write_all(job)
    assert sizes == [2] + NUM_VIEWS * [2, 1]


def test_progress_moves_at_commits(job):
    class Seen:
        count = size_bytes = 0

        def __call__(self, group, size_bytes):
            self.count += group.stop - group.start
            self.size_bytes += size_bytes
            assert len(committed(job)) >= self.count / quick.SHARD

    seen, groups = Seen(), all_groups(job)
    with Pipeline(job, seen) as writing:
        writing.write(all_groups(job))
        writing.write([layout(job, "val").group(0, 0)])  # somebody has written it meanwhile
    assert (
        seen.count == 2 * quick.NUM_VAL + NUM_VIEWS * quick.NUM_TRAIN and len(writing.written) == 11
    )
    assert seen.size_bytes == sum(
        layout(job, group.split).group_bytes(group) for group in groups
    )  # raw chunks


def test_groups_held_by_another_process_are_returned_and_the_others_written(job):
    held = layout(job, "train").group(0, 1)
    with (
        open_storage(job.config.cache.path).take_lease(held.name),
        Pipeline(job, ignore) as writing,
    ):
        assert writing.write(all_groups(job)) == [held]
        assert held.name not in committed(job) and len(committed(job)) == 10


@pytest.mark.parametrize(
    ("cores", "writers", "groups"), [(1, 1, 3), (2, 1, 3), (4, 2, 5), (16, 8, 11), (128, 8, 11)]
)
def test_the_crew_grows_with_the_machine(monkeypatch, cores, writers, groups):
    monkeypatch.setattr("kdcache.machine.process.count_cores", lambda: cores)
    crew = choose_crew(1)
    assert crew.writers == writers and crew.most_groups == groups


@pytest.mark.parametrize(("group_gb", "writers"), [(0.5, 8), (1.0, 4), (2.5, 1), (100.0, 1)])
def test_the_crew_shrinks_where_groups_are_large(monkeypatch, group_gb, writers):
    """Half of 10 GB may be held: the group at the teacher and those at the writers."""
    monkeypatch.setattr("kdcache.machine.process.count_cores", lambda: 64)
    monkeypatch.setattr(pipeline, "find_free_ram", lambda: 10_000_000_000)
    assert choose_crew(int(group_gb * 1e9)).writers == writers


@pytest.mark.parametrize(("device", "factor"), [("cpu", 1), ("cuda", 2)])
def test_pinned_memory_counts_as_torch_rounds_it(job, monkeypatch, device, factor):
    asked, choose = [], pipeline.choose_crew
    monkeypatch.setattr(pipeline, "choose_crew", lambda size: asked.append(size) or choose(size))
    monkeypatch.setattr(job.teacher, "device", torch.device(device))
    with Pipeline(job, ignore):
        assert asked == [factor * pipeline._measure_largest_group(job.manifest)]


@pytest.mark.cuda
def test_on_a_gpu_an_overflow_is_found_when_its_copy_is_complete(job, monkeypatch):
    def answer(true, call):
        if call == 1:
            true["mid"][1, 1, 2, 0] = float("inf")
        return {name: values.cuda() for name, values in true.items()}

    replace_teacher(job, answer)
    sample = job.splits["train"].samples[1].id
    with pytest.raises(TeacherError, match=f"sample '{sample}': teacher's mid reaches inf"):
        write_all(job)
    assert "train-v0000-g00000" not in committed(job)


@pytest.mark.cuda
def test_on_a_gpu_answers_that_are_copied_beside_the_next_batch_are_the_same_bytes(
    job, monkeypatch, data_root, tmp_path
):
    whole = make_job(make_config(quick.quick_given(data_root, tmp_path / "whole", views=NUM_VIEWS)))
    write_serially(whole)
    object.__setattr__(job.config.teacher, "batch_size", 1)
    replace_teacher(job, lambda true, call: {name: values.cuda() for name, values in true.items()})
    write_all(job)
    assert snapshot(job.config.cache.path) == snapshot(whole.config.cache.path)
