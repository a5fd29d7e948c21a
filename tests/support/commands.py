"""Command lines as documents have them, without running them."""

from __future__ import annotations

from kdcache.config import Config
from kdcache.config.options import override, read_given
from kdcache.config.parser import make_config
from kdcache.training.grid import Grid
from train_student.training import build_parser, read_grid_of


def read_grid_command(argv: list[str]) -> tuple[Grid, list[Config]]:
    """The grid of `python -m train_student ARGV`, and the settings of each of its points."""
    args = build_parser({}).parse_args(argv)
    grid, given = read_grid_of(args), read_given(args)
    return grid, [make_config(override(given, point)) for point in grid.points()]
