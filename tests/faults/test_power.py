"""Power loss after commit loses nothing: unflushed writes are dropped after every step, and each
committed record verifies.
"""

import shutil

import pytest

from kdcache.cache.verify import verify_cache
from kdcache.errors import CacheError
from kdcache.precompute.repair import repair_cache
from tests.faults.ledger import Ledger
from tests.support import quick
from tests.support.effort import FULL, quick_and_full

pytestmark = quick_and_full


def count_committed(image) -> int:
    """Commit records of an image; each must verify, byte for byte."""
    records = list(image.glob("commits/*.json"))
    if not (image / "manifest.json").is_file():
        assert not records, "records without manifest"
        return 0
    findings = verify_cache(image, data=True)
    assert not findings.damage, findings.damage
    return len(records)


@pytest.fixture
def watch(quick_data, tmp_path, monkeypatch, effort):
    """Run `work` under a ledger; after steps call `check` with an image of either kind.

    After each step if `effort` is full; else after the first of each kind, every tenth and the
    last.
    """

    def run(work, check, *, root=None, **forgets) -> Ledger:
        root, image, steps = root or tmp_path / "cache", tmp_path / "image", []
        root.mkdir(exist_ok=True)
        ledger = Ledger(root, **forgets)
        if any(root.iterdir()):
            ledger.adopt()

        def observe(step: str) -> None:
            steps.append(step)
            if effort == FULL or len(steps) % 10 == 0 or steps.count(step) == 1:
                look()

        def look() -> None:
            for names_survive in (False, True):
                ledger.write_image(image, names_survive=names_survive)
                check(image)
                shutil.rmtree(image)

        with monkeypatch.context() as patch:
            ledger.watch(patch.setattr, observe)
            work(root)
        look()
        return ledger

    return run


def test_after_a_power_loss_at_any_step_every_committed_group_verifies(quick_data, whole, watch):
    counts = []
    ledger = watch(
        lambda root: quick.build_quick(quick_data, root),
        lambda image: counts.append(count_committed(image)),
    )
    assert max(counts) == len(quick.GROUPS) and counts[-2] == len(quick.GROUPS)
    kept = {
        str(path): ledger.contents[number][1]
        for path, number in ledger.kept.items()
        if path.name != "manifest.json"
    }
    assert (
        kept == whole
    )  # nothing is on the disk that the ledger does not know, and all of it lasts


def test_after_a_power_loss_a_build_goes_on(quick_data, whole, watch, tmp_path, effort):
    """At every tenth of these steps: the image is built to its end, unseen by the ledger."""
    images = []

    def keep(image) -> None:
        images.append(tmp_path / f"kept{len(images)}")
        if len(images) % (20 if effort == FULL else 10) in (1, 2):
            shutil.copytree(image, images[-1])

    watch(lambda root: quick.build_quick(quick_data, root), keep)
    for image in filter(lambda image: image.exists(), images):
        quick.build_quick(quick_data, image)
        assert quick.snapshot(image) == whole


def test_a_power_loss_while_unlabelled_images_are_added_loses_nothing_else(
    bare_data, bare_root, watch, tmp_path
):
    root, counts = tmp_path / "cache", []
    quick.build_quick(bare_data, root)
    watch(
        lambda root: quick.build_quick(bare_data, root, unlabelled="rest"),
        lambda image: counts.append(count_committed(image)),
        root=root,
    )
    assert min(counts) == len(quick.GROUPS) and counts[-2] == len(quick.GROUPS) + 4
    assert quick.snapshot(root) == quick.snapshot(bare_root)


def test_a_power_loss_during_repair_loses_nothing_else(
    quick_data, whole, whole_root, watch, tmp_path
):
    root = tmp_path / "cache"
    shutil.copytree(whole_root, root)
    low = root / "train/low/c/1/0/0/0/0"
    low.write_bytes(low.read_bytes()[::-1])

    def check(image) -> None:
        broken = {damage.group.name for damage in verify_cache(image, data=True).damage}
        assert broken <= {"train-v0001-g00000"}

    watch(lambda root: repair_cache(root, {}), check, root=root)
    assert quick.snapshot(root) == whole


@pytest.mark.parametrize("forgets", [{"flush_files": False}, {"flush_folders": False}])
def test_the_ledger_notices_a_program_that_does_not_flush(quick_data, watch, forgets):
    lost = []

    def check(image) -> None:
        try:
            lost.append(count_committed(image) < len(quick.GROUPS))
        except (AssertionError, CacheError):
            lost.append(True)

    watch(lambda root: quick.build_quick(quick_data, root), check, **forgets)
    assert lost[-2]  # the image of certain names after the last step
