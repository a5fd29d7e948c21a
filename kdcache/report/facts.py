"""What a run was: its time and size, its cache, versions, settings, as HTML."""

from __future__ import annotations

from kdcache.config import Config, config_to_dict
from kdcache.config.parser import flatten
from kdcache.report.finished import Finished
from kdcache.report.tables import draw_facts, draw_grid
from kdcache.training.run import Data

UNKNOWN = "not recorded"


def draw_run(config: Config, data: Data, runs: dict[str, Finished]) -> str:
    """The section.

    Args:
        runs: "baseline", "student" (those there are).
    """
    manifest = data.manifest
    facts = {who: _describe_time(run.result) for who, run in reversed(runs.items())}
    facts |= {
        "parameters": f"{runs['student'].result['params']:,}",
        "cache": data.val.root,
        "identity": manifest.identity_hash,
    }
    for split, layout in manifest.layouts.items():
        facts[split] = f"{layout.num_samples} samples x {layout.num_views} views"
    hidden = {
        "Settings": flatten(config_to_dict(config)),
        "Cache identity": flatten(manifest.identity),
    }
    details = "".join(
        f"<details><summary>{title}</summary>{draw_facts(more)}</details>"
        for title, more in hidden.items()
    )
    machines = {**{who: run.result for who, run in runs.items()}, "cache": manifest.information}
    return (
        f"<section><h2>The run</h2>{draw_facts(facts)}{_draw_machines(machines)}{details}</section>"
    )


def _draw_machines(machines: dict[str, dict]) -> str:
    """Device and versions, a column each; what was trained by an older kdcache has not recorded them."""
    columns = [_describe_machine(machine) for machine in machines.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, UNKNOWN) for column in columns)] for name in names]
    return f"<h3>Made with</h3>{draw_grid(['', *machines], rows, kind='made')}"


def _describe_machine(machine: dict) -> dict[str, str]:
    device, threads, versions = (
        machine.get(name) for name in ("device", "num_threads", "versions")
    )
    facts = {"device": str(device)} if device else {}
    facts |= {"CPU threads": str(threads)} if threads else {}
    return facts | {name: str(version) for name, version in (versions or {}).items()}


def _describe_time(result: dict) -> str:
    seconds, epochs = result["seconds"], result["epochs"]
    return f"{epochs} epochs in {seconds:.0f} s, {seconds / epochs:.1f} s an epoch; best: {result['best_epoch']}"
