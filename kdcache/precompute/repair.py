"""Repair of a cache: recompute damaged and missing shard groups, change no other byte."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdcache.cache.basis import basis_key
from kdcache.cache.facts import find_differences, join_devices
from kdcache.cache.layout import Group
from kdcache.cache.lifecycle import (
    add_information,
    complete_views,
    rewrite_metadata,
)
from kdcache.cache.lists import with_data
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.merge import check_same_identity
from kdcache.cache.records import has_record
from kdcache.cache.settings import check_teacher_code, stored_config
from kdcache.cache.verify import Findings, check_group, verify_cache
from kdcache.cache.writer import check_targets, retract_group, write_group
from kdcache.config import Config
from kdcache.errors import CacheCorruptError, CacheError, Phrase, SettingsError, describe
from kdcache.machine.process import describe_machine
from kdcache.models.own_code import Trust
from kdcache.precompute.build import prepare_job
from kdcache.precompute.group import compute_group
from kdcache.precompute.grow import follow_lists
from kdcache.precompute.pipeline import Job
from kdcache.progress import Progress, Silent
from kdcache.storage import Storage, open_storage


@dataclass(frozen=True)
class Repair:
    """What was found and done: groups recomputed, documents (zarr.json, bases) rewritten.

    left: groups that hold samples which are not listed, or of files that are others now; building
        asks about their other samples again.
    """

    findings: Findings
    groups: list[Group]
    documents: list[str]
    left: list[Group] = field(default_factory=list)


def repair_cache(
    place: Storage | str | Path,
    given: dict,
    *,
    dry_run: bool = False,
    trust: Trust | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Verify every byte, then recompute what is damaged or missing.

    Args:
        given: settings that differ from those the cache was built with: where data set and weights
            are now, the device.
        dry_run: only say what would be done; needs neither data set nor teacher.
        trust: whether a teacher of the user's that the cache names may be imported (default: no).

    Raises: CacheMismatchError if data set or teacher are not those of the cache, CacheCorruptError
        if its manifest is damaged.
    """
    root = open_storage(place)
    root.check_changeable()
    progress, manifest = progress or Silent(), read_manifest(root)
    findings = verify_cache(root, data=True, progress=progress)
    groups = sorted({*findings.damaged_groups, *findings.unwritten})
    documents = [damage.key for damage in findings.damage if damage.group is None]
    if dry_run or not (groups or documents):
        return Repair(findings, groups, documents)
    bases = [basis_key(level) for level in manifest.encodings]
    needs_teacher = groups or any(key in bases for key in documents)
    config = stored_config(root, manifest, given)
    if needs_teacher:
        check_teacher_code(root, manifest, config, trust=trust)
    job = _prepare_repair(root, manifest, config, progress) if needs_teacher else None
    rewrite_metadata(root, job.bases if job else {})
    if job:
        devices = join_devices(manifest.information, describe_machine(job.teacher.device))
        if groups and devices:
            add_information(root, devices)
        known = [group for group in groups if _is_known(job, group)]
        left = [group for group in groups if group not in known]
        _recompute(job, known, progress)
        for group in left:
            _take_back(root, group)
        complete_views(root)
        return Repair(findings, known, documents, left)
    return Repair(findings, groups, documents)


def _is_known(job: Job, group: Group) -> bool:
    """Whether the files of all samples of a group are those that it was made of."""
    samples = job.stored[group.split].samples if group.split in job.stored else ()
    return bool(samples) and None not in samples[group.start : group.stop]


def _take_back(root: Storage, group: Group) -> None:
    """Remove the commit record of a damaged group that cannot be made again. Raises CacheError."""
    with root.take_lease(group.name) as lease:
        if lease is None:
            raise _refuse_busy(root, group)
        retract_group(root, group, lease=lease)


def _refuse_busy(root: Storage, group: Group) -> CacheError:
    return CacheError(
        f"{root}: shard group {group.name} is being written by {root.read_holder(group.name)}; "
        "wait for it and repair again"
    )


def _prepare_repair(root: Storage, manifest: Manifest, config: Config, progress: Progress) -> Job:
    job = prepare_job(config, progress)
    for split, identity in job.manifest.identity.items():
        differences = find_differences(manifest.identity[split], identity)
        if differences and all(name.endswith("basis_sha256") for name, _, _ in differences):
            raise CacheCorruptError(
                root.name(basis_key(differences[0][0].split(".")[1])),
                "basis is lost, and learned again it differs in its last bits",
                cure="restore it from a copy, repair on the machine that built the cache, "
                "with as many threads, or build it anew in another folder",
            )
    cure = "point dataset.root and teacher.weights at those the cache was built with"
    found, expected = dict(manifest.identity), job.manifest.identity
    for split, listing in manifest.growing.items():  # a growing list can be finished
        if split in expected and expected[split]["dataset"]["sha256"] == listing.sha256:
            found[split] = with_data(found[split], listing.sha256)
    check_same_identity(root, found=found, expected=expected, cure=cure)
    lacks = next((split for split in manifest.identity if split not in job.splits), None)
    if lacks:
        found, expected = None, Phrase("the images the cache was built with")
        raise SettingsError(
            describe(root, field=f"dataset.{lacks}", found=found, expected=expected, cure="give it")
        )
    return replace(job, manifest=manifest, parts=follow_lists(job, progress).parts)


def _recompute(job: Job, groups: list[Group], progress: Progress) -> None:
    total = sum(group.stop - group.start for group in groups)
    with (
        progress.start("repairing", total=total, unit="samples") as bar,
        ThreadPoolExecutor(4) as pool,
    ):
        for group in groups:
            _recompute_group(job, group, pool)
            bar.advance(group.stop - group.start)


def _recompute_group(job: Job, group: Group, pool: ThreadPoolExecutor) -> None:
    """Recompute a group unless it is sound by now. Raises CacheError if another has it."""
    root, manifest = job.storage, job.manifest
    with root.take_lease(group.name) as lease:
        if lease is None:
            raise _refuse_busy(root, group)
        if has_record(root, group) and not check_group(root, manifest, group, data=True)[0]:
            return  # another repair was faster
        check_targets(root, manifest.layouts[group.split], group)
        contents = compute_group(
            job.config,
            group,
            splits=job.stored,
            teacher=job.teacher,
            encoder=job.encoder,
            pool=pool,
        )
        retract_group(root, group, lease=lease)
        write_group(root, manifest, group, contents=contents, lease=lease)
