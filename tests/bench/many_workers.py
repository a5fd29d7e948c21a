"""The protocol at many workers, simulated: `python -m tests.bench.many_workers`; a line of JSON,
exit code 1 where it failed.

Each worker is a thread that does what a process of phase one does from opening the cache on:
    opening, its stripe, what others
have left, completing. Only drawing and the teacher are left out: a group's arrays are a few bytes
    that tell who wrote them, as if each worker had a GPU that rounds otherwise. A share of the
    groups kills its worker before a random step on the disk, in the middle of a file where that
    step writes one; its files and its lease file stay, the lock is gone, and the worker is begun
    again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.storage.base import LEASES
from tests.bench.data import plan_store
from tests.bench.worker_child import Record, run_workers

PX = 16
COORDINATION = ("opening", "leases", "looking", "listing", "record", "completing")


def simulate(
    root: Path, *, num_workers: int, num_groups: int, share: float, num_processes: int
) -> dict:
    """Build a cache of that many groups; what happened, what it cost, and what was found
    afterwards.

    Args:
        share: of the groups, 0 to 1, that kill who writes them; drawn anew for each attempt.
    """
    # one group of val
    config, manifest = plan_store(
        root, px=PX, num_samples=num_groups - 1, shard_samples=1, num_views=1, levels={}
    )
    context = multiprocessing.get_context("forkserver")  # no fork of a process with threads
    context.set_forkserver_preload([run_workers.__module__])
    began_s = time.perf_counter()
    with context.Pool(num_processes) as pool:
        ranks = [list(range(first, num_workers, num_processes)) for first in range(num_processes)]
        records = pool.starmap(
            run_workers, [(config, manifest, some, num_workers, share) for some in ranks]
        )
    facts = {
        "workers": num_workers,
        "groups": num_groups,
        "took_s": round(time.perf_counter() - began_s, 1),
    }
    return {**facts, **_add_up(records, num_groups), **judge(root, manifest, records)}


def _add_up(records: list[Record], num_groups: int) -> dict:
    """Beginnings, deaths, and CPU time in ms a group: what is between workers, and what one alone
    would have to do, too.
    """
    counts, spent_s = Counter(), Counter()
    for record in records:
        counts.update(record.counts)
        spent_s.update(record.spent_s)
    write_s = spent_s["writing"] - spent_s["record"]
    parts_ms = {name: round(1e3 * spent_s[name] / num_groups, 3) for name in COORDINATION}
    facts = {"coordination_ms": round(sum(parts_ms.values()), 3), "coordination_parts_ms": parts_ms}
    facts |= {"write_ms": round(1e3 * write_s / num_groups, 3)}
    return {
        **counts,
        **facts,
        "opening_ms_each": round(1e3 * spent_s["opening"] / counts["begun"], 1),
    }


def judge(root: Path, manifest: Manifest, records: list[Record]) -> dict:
    """How often each group was committed, and whether every byte is what its record says."""
    committed = Counter(name for record in records for name in record.committed)
    found = verify_cache(root, data=True)
    split_views = {split: layout.num_views for split, layout in manifest.layouts.items()}
    return {
        "committed": len(committed),
        "committed_twice": sum(count > 1 for count in committed.values()),
        "sound_groups": found.num_groups,
        "damage": [f"{damage.key}: {damage.what}" for damage in found.damage[:3]],
        "unwritten": len(found.unwritten),
        "complete": read_manifest(root).complete_views == split_views,
        "leases_left": len(list((root / LEASES).iterdir())),
    }


def is_sound(facts: dict) -> bool:
    """Whether each group was committed once and is whole."""
    once = (
        facts["committed"] == facts["sound_groups"] == facts["groups"]
        and not facts["committed_twice"]
    )
    return once and facts["complete"] and not facts["damage"] and not facts["unwritten"]


def main(argv: list[str]) -> int:
    """Simulate, print."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.many_workers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--workers", type=int, default=512)
    parser.add_argument(
        "--groups",
        type=int,
        default=100_000,
        help="each takes twelve files and folders, 50 kB of disk",
    )
    parser.add_argument(
        "--share", type=float, default=0.05, help="of groups that kill their worker"
    )
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument(
        "--dir", type=Path, default=Path("build"), help="where the cache goes meanwhile"
    )
    options = parser.parse_args(argv)
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="many-workers-") as folder:
        sizes = {
            "num_workers": options.workers,
            "num_groups": options.groups,
            "num_processes": options.processes,
        }
        facts = simulate(Path(folder) / "cache", share=options.share, **sizes)
    print(json.dumps(facts))
    return int(not is_sound(facts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
