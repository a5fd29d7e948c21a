"""Runs of before stay what they are when a setting is added."""

from __future__ import annotations

from kdcache.config.parser import make_config
from kdcache.training.run_folder import BEFORE
from kdcache.training.run_identity import hyperparameters

FIRST = {
    "student": {"pretrained", "aspp_channels"},
    "loss": {"alpha", "beta", "gamma", "temperature"},
    "train": {"epochs", "batch_size", "lr", "seed", "precision"},
    "augment": {"views"},
    "cache": {"levels"},
}
"""Hyperparameters that the first runs have recorded; never more than these."""


def test_a_setting_that_older_runs_do_not_record_has_the_value_they_were_trained_with():
    """Else no run of before can be resumed, and their baselines are trained again."""
    recorded = {f"{section}.{name}" for section, names in FIRST.items() for name in names}
    now = set(hyperparameters(make_config({"train": {"device": "cpu"}})))
    assert now - recorded == set(BEFORE), (
        "BEFORE in kdcache/training/run_folder.py and the hyperparameters differ: give each new "
        "setting in BEFORE the value that does what was done before there was it; one that moves "
        "no number is taken out in hyperparameters() of run_identity.py"
    )
