"""Heals a cache: recomputes exactly the shard groups that are damaged or missing, leaves every other byte alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kdcache.cache.basis import basis_path
from kdcache.cache.folder import check_changeable, complete_views, rewrite_metadata
from kdcache.cache.identity import check_identity, find_differences
from kdcache.cache.layout import Group
from kdcache.cache.lease import read_holder, take_lease
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.records import has_record
from kdcache.cache.settings import read_config
from kdcache.cache.verify import Findings, check_group, verify_cache
from kdcache.cache.writer import check_targets, retract_group, write_group
from kdcache.config import Config
from kdcache.errors import CacheCorruptError, CacheError
from kdcache.precompute.answers import compute_group
from kdcache.precompute.build import Plan, make_plan
from kdcache.progress import Progress, Silent


@dataclass(frozen=True)
class Repair:
    """What was found and what was done about it: shard groups recomputed, zarr.json files and bases written anew."""

    findings: Findings
    groups: list[Group]
    documents: list[Path]


def repair_cache(
    root: Path, given: dict, *, dry_run: bool = False, progress: Progress | None = None
) -> Repair:
    """Verify every byte, then recompute what is damaged or missing.

    Args:
        given: settings that differ from those the cache was built with: where data set and weights are now, the device.
        dry_run: only say what would be done; needs neither data set nor teacher.

    Raises: CacheMismatchError where data set or teacher are not those of the cache, CacheCorruptError for its manifest.
    """
    check_changeable(root)
    progress, manifest = progress or Silent(), read_manifest(root)
    findings = verify_cache(root, data=True, progress=progress)
    groups = sorted({*findings.damaged_groups, *findings.unwritten})
    documents = [damage.path for damage in findings.damage if damage.group is None]
    if dry_run or not (groups or documents):
        return Repair(findings, groups, documents)
    needs_teacher = groups or any(
        path == basis_path(root, level) for path in documents for level in manifest.encodings
    )
    plan = _plan_repair(root, manifest, given, progress) if needs_teacher else None
    rewrite_metadata(root, plan.bases if plan else {})
    if plan:
        _recompute(plan, groups, progress)
        complete_views(root)
    return Repair(findings, groups, documents)


def stored_config(root: Path, manifest: Manifest, given: dict) -> Config:
    """The settings a cache was built with, overlaid by those given."""
    here = {"cache": {"path": str(root)}, "augment": {"views": manifest.layouts["train"].num_views}}
    return read_config(manifest, {"dataset": {"download": False}}, given, here)


def _plan_repair(root: Path, manifest: Manifest, given: dict, progress: Progress) -> Plan:
    plan = make_plan(stored_config(root, manifest, given), progress)
    cure = "point dataset.root and teacher.weights at those the cache was built with"
    for split, identity in plan.manifest.identity.items():
        differences = find_differences(manifest.identity[split], identity)
        if differences and all(name.endswith("basis_sha256") for name, _, _ in differences):
            raise CacheCorruptError(
                basis_path(root, differences[0][0].split(".")[1]),
                "basis is lost, and learned again it differs in its last bits",
                cure="restore it from a copy, repair on the machine that built the cache, with as many threads, "
                "or build it anew in another folder",
            )
        check_identity(root, found=manifest.identity[split], expected=identity, cure=cure)
    return replace(plan, manifest=manifest)


def _recompute(plan: Plan, groups: list[Group], progress: Progress) -> None:
    total, root, encoder = (
        sum(group.stop - group.start for group in groups),
        plan.config.cache.path,
        plan.encoder,
    )
    with (
        progress.start("repairing", total=total, unit="samples") as bar,
        ThreadPoolExecutor(4) as pool,
    ):
        for group in groups:
            with take_lease(root, group.name) as lease:
                if lease is None:
                    raise CacheError(
                        f"{root}: shard group {group.name} is being written by {read_holder(root, group.name)}; "
                        "wait for it and repair again"
                    )
                if (
                    has_record(root, group)
                    and not check_group(root, plan.manifest, group, data=True)[0]
                ):
                    continue  # another repair has healed it since we looked
                check_targets(root, plan.manifest.layouts[group.split], group)
                contents = compute_group(
                    plan.config,
                    group,
                    splits=plan.splits,
                    teacher=plan.teacher,
                    encoder=encoder,
                    pool=pool,
                )
                retract_group(root, group, lease=lease)
                write_group(root, plan.manifest, group, contents=contents, lease=lease)
            bar.advance(group.stop - group.start)
