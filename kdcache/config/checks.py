"""Checks of single settings; each raises SettingsError with the setting, its value and range."""

from __future__ import annotations

import re
from pathlib import Path

from kdcache.errors import hide_passwords, refuse

SCHEMES = ("s3", "gs", "az")
"""Of object stores."""
MOST_PX = 65_536  # of a side


def check_range(field_name: str, value: float, low: float, high: float) -> None:
    """Raises SettingsError outside low..high, both allowed."""
    if not low <= value <= high:  # also refuses NaN
        raise refuse(field_name, value, f"{low} to {high}")


def check_positive(field_name: str, value: float) -> None:
    """Raises SettingsError unless 0 < value < infinity."""
    if not 0 < value < float("inf"):
        raise refuse(field_name, value, "a number above 0")


def check_size(field_name: str, size: int | list[int] | None, *, stride: int) -> None:
    """Raises SettingsError unless `size` is None, N or [height, width], multiples of `stride`."""
    if size is None:
        return
    if isinstance(size, list) and len(size) != 2:
        raise refuse(field_name, size, "one number or [height, width]")
    if any(px < stride or px % stride or px > MOST_PX for px in as_hw(size)):
        raise refuse(field_name, size, f"multiples of {stride}, {stride} to {MOST_PX}")


def as_hw(size: int | list[int]) -> tuple[int, int]:
    """N or [height, width] -> (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def clean_address(field_name: str, given: object) -> str | Path:
    """Where a cache is: "s3://BUCKET/KEY" without needless slashes, or a path. Nothing is opened.

    Raises: SettingsError if it is neither.
    """
    text = str(given)
    if hide_passwords(text) != text:
        expected = "an address without a password: credentials come from the environment"
        raise refuse(field_name, hide_passwords(text), expected)
    if re.match(rf"({'|'.join(SCHEMES)}):/+[^/]", text) and "://" not in text:
        expected = f"s3://BUCKET/KEY, with two slashes; a folder of that name is ./{text}"
        raise refuse(field_name, text, expected)
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme not in SCHEMES:
        expected = "a path, or an address that begins with s3://, gs:// or az://"
        raise refuse(field_name, text, expected)
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise refuse(field_name, text, f"s3://BUCKET/KEY ({text!r} names no bucket)")
    return f"{scheme}://{bucket}/{'/'.join(part for part in key.split('/') if part)}"
