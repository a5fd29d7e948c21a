"""Examples in docstrings are executed."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from kdcache import metrics
from kdcache.losses import distillation

SHOWN = {
    metrics: {"count_confusion", "compute_iou_per_class", "compute_miou", "evaluate_segmentation"},
    distillation: {"KnowledgeDistillationLoss"},
}


@pytest.mark.parametrize("module", SHOWN, ids=lambda module: module.__name__)
def test_examples_in_docstrings_give_what_they_show(module: ModuleType):
    found = {
        test.name.split(".")[-1]: test
        for test in doctest.DocTestFinder().find(module)
        if test.examples
    }
    assert set(found) == SHOWN[module]
    runner, said = doctest.DocTestRunner(), []
    for test in found.values():
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
