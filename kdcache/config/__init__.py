"""Every setting of both programs, one frozen dataclass a section; all defaults live here.

The defaults are `configs/voc2012_seed.yaml`: PASCAL VOC 2012 at 512x512, and the teacher with
torchvision's VOC weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

from kdcache.config.caching import VOC_CLASSES as VOC_CLASSES
from kdcache.config.caching import AugmentConfig as AugmentConfig
from kdcache.config.caching import CacheConfig as CacheConfig
from kdcache.config.caching import DatasetConfig as DatasetConfig
from kdcache.config.caching import RankConfig as RankConfig
from kdcache.config.names import KINDS as KINDS
from kdcache.config.names import LEVELS as LEVELS
from kdcache.config.names import PRESETS as PRESETS
from kdcache.config.names import STRIDE as STRIDE
from kdcache.config.names import VOID as VOID
from kdcache.config.teacher import FitConfig as FitConfig
from kdcache.config.teacher import LayerConfig as LayerConfig
from kdcache.config.teacher import TeacherConfig as TeacherConfig
from kdcache.config.training import LossConfig as LossConfig
from kdcache.config.training import RunConfig as RunConfig
from kdcache.config.training import StudentConfig as StudentConfig
from kdcache.config.training import TrainConfig as TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


def config_to_dict(config: object) -> dict:
    """Plain nested dict of a config or section, paths as text: fit for YAML and JSON."""
    return _plain(config)


def config_from_dict(values: dict, *, section: type = Config) -> object:
    """The inverse of `config_to_dict`; missing fields take their defaults.

    Raises: SettingsError if a value is out of range.
    """
    types = {
        "root": Path,
        "out": Path,
        "dir": Path,
        "stage_dir": Path,
    }  # cache.path may be more than that
    nested = {f.name: f.default_factory for f in fields(section) if is_dataclass(f.default_factory)}
    made = {}
    for name, value in values.items():
        if name in nested:
            made[name] = config_from_dict(value, section=nested[name])
        else:
            made[name] = types[name](value) if name in types and value is not None else value
    return section(**made)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value
