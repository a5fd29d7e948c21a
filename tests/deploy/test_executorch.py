"""A student as an ExecuTorch program; needs `kdcache[executorch]`, which the development's packages
do not hold.
"""

from __future__ import annotations

import pytest

from train_student.cli import main

pytest.importorskip("executorch", reason="kdcache[executorch] is not installed")


@pytest.mark.filterwarnings("ignore")  # its packages' own
def test_the_built_in_student_answers_as_in_pytorch(run, capsys):
    assert main(["export", str(run), "--to", "executorch"]) == 0
    assert "5 images asked of ExecuTorch" in capsys.readouterr().out
    assert (run / "student.pte").is_file() and not list(run.glob("*.partial"))
