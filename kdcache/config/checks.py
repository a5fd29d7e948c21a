"""Checks of single settings: each raises SettingsError that names the setting, what it is and what it may be."""

from __future__ import annotations

from kdcache.errors import refuse


def check_range(field_name: str, value: float, low: float, high: float) -> None:
    """Raises SettingsError outside low..high, both allowed."""
    if not low <= value <= high:  # also refuses NaN
        raise refuse(field_name, value, f"{low} to {high}")


def check_positive(field_name: str, value: float) -> None:
    """Raises SettingsError unless 0 < value < infinity."""
    if not 0 < value < float("inf"):
        raise refuse(field_name, value, "a number above 0")


def check_size(field_name: str, size: int | list[int] | None, *, stride: int) -> None:
    """Raises SettingsError unless size is None, N or [height, width] in multiples of `stride` pixels."""
    if size is None:
        return
    if isinstance(size, list) and len(size) != 2:
        raise refuse(field_name, size, "one number or [height, width]")
    if any(px < stride or px % stride for px in as_hw(size)):
        raise refuse(field_name, size, f"multiples of {stride}, at least {stride}")


def as_hw(size: int | list[int]) -> tuple[int, int]:
    """N or [height, width] -> (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
