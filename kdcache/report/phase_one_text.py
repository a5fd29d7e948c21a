"""Phase one as text: the forecast before it, and how faithful its answers are after it."""

from __future__ import annotations

from kdcache.progress import format_bytes, format_time, join_lines

PARTS = {  # of the time
    "setup_s": "preparing",
    "val_s": "val",
    "train_s": "training views",
    "unlabelled_s": "unlabelled views",
    "score_s": "scoring",
    "comparison_s": "comparing with the teacher",
}
LIMITS = {  # of many workers
    "alone": "what each prepares for itself (reading all images, the teacher, bases)",
    "asking": "asking the teacher",
    "bandwidth": "the bandwidth of the place",
    "group": "the longest shard group",
    "once": "what one does at the end",
}


def format_forecast(facts: dict) -> str:
    """What is to be done, bytes, free disk, time, break-even, and what other encodings would save.

    Args:
        facts: as `forecast_cache` gives them, with "fleet" if many workers were asked about.
    """
    lines = [f"{facts['path']}: {_format_state(facts)}"]
    for split, grid in facts["splits"].items():
        lines += [f"{split}: {grid['num_samples']} images x {grid['num_views']} views"]
        lines += [_format_array(name, array) for name, array in grid["arrays"].items()]
    lines += [
        _format_size(facts),
        _format_disk(facts),
        _format_time(facts),
        _format_worth(facts["break_even"]),
        _format_teacher(facts["teacher"]),
    ]
    lines += _format_fleet(facts) if "fleet" in facts else []
    lines += _format_others(facts["others"], facts["compared"])
    return "\n".join(lines)


def _format_state(facts: dict) -> str:
    """How much of the cache exists already."""
    groups = sum(split["groups"] for split in facts["splits"].values())
    done = sum(split["groups_committed"] for split in facts["splits"].values())
    if done == 0:
        return "nothing is built yet"
    if done == groups:
        return "complete, nothing to do"
    samples = sum(split["num_missing"] for split in facts["splits"].values())
    to_do = f"{samples} samples, {format_bytes(facts['size']['missing_bytes'])}"
    return f"{done} of {groups} shard groups are there; still to do: {to_do}"


def _format_array(name: str, array: dict) -> str:
    shape = "x".join(map(str, array["item_shape"]))
    coded = f", {array['codec']['name']}" if array["codec"] else ""
    size = f"{format_bytes(array['sample_bytes']):>10} a sample {format_bytes(array['bytes']):>10}"
    return f"  {name:<12} {array['dtype']:<8} {shape:<12}{size}{coded}"


def _format_size(facts: dict) -> str:
    size = facts["size"]
    documents = f"{format_bytes(size['document_bytes'])} documents and bases"
    source = "arrays exact" if size["exact"] else _format_source(facts["probe"])
    return f"size: {size['bytes'] / 1e6:,.2f} MB, of which {documents}; {source}"


def _format_source(probe: dict) -> str:
    """The samples on which the bytes of compressed arrays were measured."""
    samples = probe["num_samples"]
    return f"coded arrays as in {samples['train']} training and {samples['val']} validation samples"


def _format_disk(facts: dict) -> str:
    disk, needed = facts["disk"], facts["size"]["missing_bytes"]
    free, folder = disk["free_bytes"], disk["folder"]
    lacking = f"IT DOES NOT FIT, {format_bytes(needed - free)} are missing"
    to_write = f"{format_bytes(needed)} are to be written"
    verdict = "it fits" if disk["fits"] else lacking
    return f"disk: {format_bytes(free)} are free at {folder}, {to_write}: {verdict}"


def _format_time(facts: dict) -> str:
    time, probe = facts["time"], facts["probe"]
    parts = ", ".join(
        f"{text} {format_time(time[name])}" for name, text in PARTS.items() if name in time
    )
    done = sum(probe["num_samples"].values())
    source = f"{done} samples made on {probe['device']}"
    return f"time: {format_time(time['missing_s'])} ({parts}), from {source}"


def _format_worth(worth: dict) -> str:
    teacher, epoch = format_time(worth["teacher_s"]), format_time(worth["saved_s_per_epoch"])
    epochs = f"{worth['epochs']:.1f} epochs, those of all students together"
    return (
        f"worth: a teacher in every step takes {teacher} an image, {epoch} an epoch; "
        f"the cache has paid for itself after {epochs}"
    )


def _format_teacher(teacher: dict) -> str:
    """The teacher's mIoU on what was sampled, and the warning of phase one."""
    counts = teacher["num_samples"]
    line = (
        f"teacher: mIoU {teacher['val_miou']:.3f} on val, {teacher['train_miou']:.3f} on training "
        f"views, an estimate from {counts['val']} and {counts['train']} samples"
    )
    return line + (f"\n  WARNING: {teacher['warning']}" if teacher["warning"] else "")


def _format_fleet(facts: dict) -> list[str]:
    """The time of many workers, and the sum behind it."""
    fleet, size_bytes = facts["fleet"], facts["size"]["missing_bytes"]
    parts = {name: format_time(time_s) for name, time_s in fleet["parts"].items()}
    groups = sum(split["groups"] - split["groups_committed"] for split in facts["splits"].values())
    writing = f"writing {format_bytes(size_bytes)}, {_format_bandwidth(fleet, parts)}"
    share = f"{fleet['num_groups']} of {groups} shard groups"
    asking = f"asking {parts['asking']} ({share}) or {writing}"
    ends = f"a shard group from end to end {parts['group']} + scoring and comparing {parts['once']}"
    total = format_time(fleet["time_s"])
    return [
        f"workers: {fleet['workers']} like this one take {total}{_format_cost(fleet)}",
        f"  = preparing, each {parts['alone']} + the longer of {asking} + {ends}",
        f"  {LIMITS[fleet['bottleneck']]} takes longest{_format_next(fleet)}",
    ]


def _format_bandwidth(fleet: dict, parts: dict[str, str]) -> str:
    if fleet["bandwidth_mb_s"] is None:
        return "of whose time nothing is known without --bandwidth"
    return f"{parts['bandwidth']} at {fleet['bandwidth_mb_s']:g} MB/s"


def _format_cost(fleet: dict) -> str:
    if fleet["cost"] is None:
        return ""
    each = f"{fleet['per_hour']:g} an hour each, to the last one's end"
    return f" and cost {fleet['cost']:.2f} ({each})"


def _format_next(fleet: dict) -> str:
    """The number of workers above which little is gained."""
    if fleet["next_workers"] is None:
        return ""
    limit = LIMITS[fleet["next"]]
    return f"; from {fleet['next_workers']} workers on asking takes no longer than {limit}"


def _format_others(others: list[dict], compared: dict) -> list[str]:
    """A table of other encodings, compared with these settings on the same samples."""
    here = compared["here_bytes"]
    samples = (
        f"{compared['num_samples']} samples, of which these settings make {format_bytes(here)}"
    )
    lines = [f"other encodings, images and labels included (from {samples}):"]
    lines += [_format_other(other, here) for other in others]
    left_out = ", ".join(compared["left_out"])
    reason = "float16 cannot hold what this teacher says"
    return lines + ([f"  not possible: {left_out}; {reason}"] if left_out else [])


def _format_other(other: dict, here_bytes: float) -> str:
    size_bytes, name = other["size_bytes"], f"{other['encoding']}, {other['codec']}"
    saved = here_bytes - size_bytes
    told = f"saves {format_bytes(saved)}" if saved >= 0 else f"takes {format_bytes(-saved)} more"
    sizes = f"{format_bytes(other['sample_bytes']):>10} a sample {format_bytes(size_bytes):>10}"
    return f"  {name:<20}{sizes}  {size_bytes / here_bytes:6.1%}, {told}"


def format_fidelity(result: dict, root: object) -> str:
    """A comparison with the live teacher: answers, gradients of students, what is beyond its limit.

    Args:
        result: as `measure_fidelity` gives it. root: the cache.
    """
    views = f"{result['samples']} samples of {result['views']} views"
    written = f", written on {' and '.join(result['written_on'])}" if "written_on" in result else ""
    asked = f"{views} (seed {result['seed']}, {result['device']}{written})"
    lines = [f"{root}: cached against live answers of {asked}"]
    if result["views"] < result["planned_views"]:
        there = f"{result['views']} of {result['planned_views']} views"
        lines.append(f"  half-built: {there} are looked at")
    for name, facts in result["answers"].items():
        least = f"expected: cosine {result['least_cosines'][name]:g} or more"
        lines.append(f"{_format_answer(name, facts)}; {least}")
    for name, terms in result["students"].items():
        for term, facts in terms.items():
            is_judged = name == result["judged"]
            limit = f"expected: {_format_limit(result['limits'][term])}"
            gradients = _format_gradients(name, term, facts)
            lines.append(f"{gradients}; {limit if is_judged else 'not judged'}")
    failures = [f"BEYOND ITS LIMIT: {failure}" for failure in result["failures"]]
    return join_lines(lines + (failures or ["faithful: every limit is kept"]))


def format_fidelity_line(result: dict) -> str:
    """The line about fidelity at the end of phase one."""
    judged = result["judged"]
    felt = result["students"][judged]
    told = ", ".join(f"{term} {felt[term]['grad_cos']:.7f}" for term in result["limits"])
    return (
        f"fidelity of {result['samples']} samples: cosine of the gradients that a student "
        f"{judged} receives, cached against live: {told}"
    )


def _format_answer(name: str, facts: dict) -> str:
    error = f"error {facts['relative']:.1e} of the values, at most {facts['max_abs']:.2g}"
    line = f"  {name:<7} {facts['encoding']:<8} cosine {facts['cosine']:.7f}, {error}"
    if "kl" in facts:
        kl = f"KL at T={facts['temperature']:g} {facts['kl']:.1e}"
        line += f"; {kl}, same class {100 * facts['agreement']:.2f} %"
    return line


def _format_gradients(student: str, term: str, facts: dict) -> str:
    loss = f"{term} loss differs by {facts['loss_rel']:.1e}"
    line = f"  student {student}: {loss}, gradient's cosine {facts['grad_cos']:.7f}"
    if "align_grad_cos" in facts:
        line += f", projections' {facts['align_grad_cos']:.7f}"
    return line


def _format_limit(limit: dict) -> str:
    loss = "" if limit["loss_rel"] is None else f", loss within {limit['loss_rel']:g}"
    return f"cosine {limit['grad_cos']:g} or more{loss}"
