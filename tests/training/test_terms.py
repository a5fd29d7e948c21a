"""Every term of the loss can be set, is computed, and is shown wherever terms are."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from kdcache.config import Config, LossConfig
from kdcache.config.names import TERMS
from kdcache.losses import KnowledgeDistillationLoss
from kdcache.report.finished import Finished
from kdcache.report.run_page import view_epochs
from kdcache.report.training import format_epoch
from kdcache.training.tracking import list_numbers

WEIGHTS = {weight: 2.0 + place for place, weight in enumerate(TERMS.values())}
CONFIG = replace(Config(), loss=LossConfig(**WEIGHTS))
NUMBERS = {"epoch": 1, "lr": 0.001, "miou": 0.5, "per_class_iou": [], "total": 99.0}
TIMES = {"time_s": 2.0, "validation_s": 1.0, "data_wait_s": 0.1, "step_s": 0.1}


def entry() -> dict:
    """An epoch with all terms."""
    return {**NUMBERS, **TIMES, **{term: 10.5 + place for place, term in enumerate(TERMS)}}


def test_the_loss_computes_the_terms_that_the_settings_name():
    loss = KnowledgeDistillationLoss(**WEIGHTS, channels={"low": (4, 2)})
    said = "kdcache/config/names.py, TERMS: name each term of the loss with its weight"
    assert {term: loss.weights[term] for term in loss.weights} == {
        term: WEIGHTS[weight] for term, weight in TERMS.items()
    }, said
    taken = set(inspect.signature(KnowledgeDistillationLoss).parameters) - {"channels"}
    assert taken == set(vars(LossConfig())), "section loss and the loss take other arguments"


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_shown_by_trackers_terminal_and_report(term):
    value, weight = entry()[term], WEIGHTS[TERMS[term]]
    assert list_numbers(entry(), []).get(f"loss/{term}") == value, "training/tracking.py"
    line = format_epoch(entry(), CONFIG, best_miou=0.5)
    label = f"{weight:g} x "
    assert label in line and f" {value:.4f}" in line, f"report/training.py does not show {term}"
    run = Finished(Path("runs/a"), {"best_epoch": 1}, [entry()], None)
    notes = [chart.note for chart in view_epochs(CONFIG, {"student": run}, None)["charts"]]
    assert any(f"weight {weight:g}" in note for note in notes), (
        f"report/run_page.py has no chart of {term}"
    )
