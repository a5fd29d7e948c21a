"""Settings as nested dicts, e.g. {"loss": {"beta": 0.5}}: merged, flattened, made a `Config`."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.config import Config, config_from_dict, config_to_dict


def make_config(*layers: Mapping) -> Config:
    """Defaults, overlaid by each layer in turn, as a checked `Config`."""
    merged = config_to_dict(Config())
    for layer in layers:
        merged = merge(merged, layer)
    return config_from_dict(merged)


def merge(base: Mapping, over: Mapping) -> dict:
    """Nested dicts, `over` winning."""
    both = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merge(both[key], value) if nested else value
    return both


def drop_unknown(values: Mapping, known: Mapping | None = None) -> dict:
    """Stored settings without names that this version lacks (another version wrote them)."""
    known = config_to_dict(Config()) if known is None else known
    return {
        name: drop_unknown(value, known[name])
        if isinstance(value, Mapping) and known[name] and isinstance(known[name], Mapping)
        else value
        for name, value in values.items()
        if name in known
    }


def flatten(values: Mapping, prefix: str = "") -> dict:
    """{"loss": {"beta": 1}} -> {"loss.beta": 1}."""
    flat = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(
            flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
        )
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """{"loss.beta": 1} -> {"loss": {"beta": 1}}."""
    nested: dict = {}
    for name, value in flat.items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return nested
