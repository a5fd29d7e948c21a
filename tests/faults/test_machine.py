"""A state machine: build, grow by a view, be killed, be damaged, tidy, repair, verify and read, in
any order, against a model.

The model is the set of groups that are committed and sound; the bytes of whole caches, of one view
and of two, are known before.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kdcache.cache.leftovers import collect_leftovers
from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import open_split
from kdcache.cache.verify import verify_cache
from kdcache.config.parser import make_config
from kdcache.errors import CacheCorruptError, CacheIncompleteError
from kdcache.precompute.build import build_cache
from kdcache.precompute.repair import repair_cache
from tests.faults import children
from tests.faults.damages import FAULTS
from tests.support import quick


class CacheMachine(RuleBasedStateMachine):
    """One cache and what is known about it. `data`, `wholes` (by number of views) and `steps` are
    set by the test.
    """

    data: Path
    wholes: dict[int, dict[str, bytes]]
    steps: list[str] = []

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.root = self.folder / "cache"
        self.sound: set[str] = set()  # groups that are committed and not damaged
        self.damaged: set[str] = set()  # groups that verify must name
        self.documents_damaged = False
        self.wanted = 1  # views that the settings ask for

    @property
    def views(self) -> int:
        """What the manifest asks for: a killed build may not have come so far as to raise it."""
        return read_manifest(self.root).layouts["train"].num_views

    @property
    def whole(self) -> dict[str, bytes]:
        return self.wholes[self.views]

    @property
    def groups(self) -> set[str]:
        return {name for name in quick.GROUPS if self._view(name) < self.views}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def exists(self) -> bool:
        return (self.root / "manifest.json").is_file()

    def note(self, name: str) -> None:
        self.steps.append(name)

    @precondition(lambda self: not self.damaged and not self.documents_damaged)
    @rule()
    def build(self) -> None:
        self.note("build")
        quick.build_quick(self.data, self.root, views=self.wanted)
        assert self.views == self.wanted and quick.snapshot(self.root).items() >= self.whole.items()
        self.sound = self.groups

    @precondition(lambda self: self.wanted == 1)
    @rule()
    def ask_for_another_view(self) -> None:
        self.note("grow")
        self.wanted = 2

    @precondition(lambda self: not self.damaged and not self.documents_damaged)
    @rule(step=st.integers(0, 150))
    def be_killed(self, step: int) -> None:
        """Build until a step on the disk; what was committed by then stays committed."""
        self.note("killed")
        with pytest.MonkeyPatch.context() as patch:
            children.meet(children.die, step=step, setattr=patch.setattr)
            with contextlib.suppress(children.Killed):
                build_cache(make_config(quick.quick_given(self.data, self.root, views=self.wanted)))
        committed = {path.stem for path in self.root.glob("commits/*.json")}
        assert committed >= self.sound
        self.sound = committed

    @precondition(lambda self: self.exists)
    @rule(fault=st.sampled_from(FAULTS), seed=st.integers(0, 2**32 - 1))
    def be_damaged(self, fault, seed: int) -> None:
        self.note("damaged")
        fault(self.root, np.random.Generator(np.random.Philox(seed)))
        self._look_again()

    def _look_again(self) -> None:
        """The model's own look at the bytes: what differs from a whole cache's."""
        self.damaged, self.sound = set(), set()
        for name in self.groups:
            record = self.root / "commits" / f"{name}.json"
            files = {path for path in self.whole if self._belongs(path, name)}
            same = {
                path
                for path in files
                if (self.root / path).is_file()
                and (self.root / path).read_bytes() == self.whole[path]
            }
            if same == files:
                self.sound.add(name)
            elif record.exists() or self._view(name) < self._complete(name):
                self.damaged.add(name)
        self.documents_damaged = any(
            (self.root / path).read_bytes() not in self._right_documents(path)
            for path in self.whole
            if path.endswith("zarr.json")
        )

    def _right_documents(self, path: str) -> list[bytes]:
        """While a view is being added, a zarr.json may not know of it yet."""
        split = path.split("/")[0]
        least = (
            max(read_manifest(self.root).complete_views[split], 1)
            if split == "train"
            else self.views
        )
        return [self.wholes[views][path] for views in range(least, self.views + 1)]

    def _belongs(self, path: str, name: str) -> bool:
        split, view, index = name.split("-")
        return name in path or (
            path.startswith(split) and f"/c/{int(view[1:])}/{int(index[1:])}/" in path
        )

    def _view(self, name: str) -> int:
        return int(name.split("-")[1][1:])

    def _complete(self, name: str) -> int:
        return read_manifest(self.root).complete_views[name.split("-")[0]]

    @precondition(lambda self: self.exists)
    @rule()
    def tidy(self) -> None:
        self.note("gc")
        collect_leftovers(self.root)
        assert collect_leftovers(self.root, dry_run=True) == []

    @precondition(lambda self: self.exists)
    @rule()
    def repair(self) -> None:
        self.note("repair")
        repair_cache(self.root, {})
        files = quick.snapshot(self.root)
        assert {
            path: data for path, data in files.items() if not path.endswith(".partial")
        } == self.whole  # those are for gc
        self.sound, self.damaged, self.documents_damaged = self.groups, set(), False

    @precondition(lambda self: self.exists)
    @rule()
    def read(self) -> None:
        """Right numbers or a typed error; right numbers where all is well."""
        self.note("read")
        try:
            for split in ("train", "val"):
                self._read_split(split)
        except (CacheCorruptError, CacheIncompleteError):
            assert self.sound != self.groups or self.documents_damaged
        else:
            assert self.sound == self.groups and not self.documents_damaged

    def _read_split(self, split: str) -> None:
        reader = open_split(self.root, split)
        for spec in reader.layout.arrays:
            for view in range(reader.layout.num_views):
                for sample in range(reader.layout.num_samples):
                    group, row = (
                        reader.layout.group(view, sample // quick.SHARD),
                        sample % quick.SHARD,
                    )
                    inside = "/".join("0" for _ in spec.item_shape)
                    shard = self.whole[f"{split}/{spec.name}/c/{view}/{group.index}/{inside}"]
                    start = row * (spec.item_bytes + 4)
                    assert (
                        reader.read(spec.name, view, sample).tobytes()
                        == shard[start : start + spec.item_bytes]
                    )

    @precondition(lambda self: self.exists)
    @invariant()
    def verify_agrees_with_the_model(self) -> None:
        findings = verify_cache(self.root, data=True)
        assert {group.name for group in findings.damaged_groups} == self.damaged
        assert any(damage.group is None for damage in findings.damage) == self.documents_damaged
        assert {
            group.name for group in findings.unwritten
        } == self.groups - self.sound - self.damaged


@pytest.mark.parametrize(
    "steps",
    [
        120,  # enough for every kind of step; they are the same each time
        pytest.param(200, marks=pytest.mark.nightly),
        pytest.param(2000, marks=pytest.mark.exhaustive),
    ],
)
def test_any_order_of_build_grow_kill_damage_gc_repair_verify_and_read(
    quick_data, whole, one_view, steps
):
    CacheMachine.data, CacheMachine.wholes, CacheMachine.steps = (
        quick_data,
        {1: one_view, 2: whole},
        [],
    )
    checks = settings(
        max_examples=steps // 20,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CacheMachine, settings=checks)
    assert len(CacheMachine.steps) >= steps
    kinds = {"build", "grow", "killed", "damaged", "gc", "repair", "read"}
    assert set(CacheMachine.steps) == kinds
