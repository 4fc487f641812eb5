"""Tests of the benchmark that compares skdice with other implementations of DICE."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from reference import dice_scores

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pytorch_ood") is None, reason="pytorch-ood is not installed")
def test_all_implementations_agree():
    # The script runs in a process of its own, because it may replace torchvision by a stand-in.
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "agreement.py"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^.*, p = \S+ .*$", done.stdout, flags=re.MULTILINE)
    assert len(rows) >= 8
    for row in rows:
        cells = re.findall(r"(\d+) / (\S+)", row)
        assert len(cells) == 3, row
        assert all(int(masked) == 0 and float(off) < 1e-5 for masked, off in cells), row
    number = r" +(\de[-+]\d+)"
    others = re.findall(rf"^\S.*? {number}{number}{number}$", done.stdout, flags=re.MULTILINE)
    assert len(others) >= 2
    for vim, formula, fdbd in np.array(others, float):
        # pytorch-ood finds the subspace of ViM in single precision.
        assert vim < 1, others
        assert max(formula, fdbd) < 1e-4, others
    answers = " ".join(done.stdout.split())
    assert "59, 59 and 59 of 60 weights are kept" in answers
    assert "quantile() input tensor is too large" in answers
    assert "correlation with skdice's scores -1.00" in answers


@pytest.mark.parametrize("rule", ["authors_weight", "openood_weight"])
@pytest.mark.parametrize("percent", [10, 70, 90])
def test_our_versions_of_the_rules_give_the_paper_s_scores(small, monkeypatch, rule, percent):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import agreement

    head, X = small
    coef = getattr(agreement, rule)(head, X, percent)
    scores = np.logaddexp.reduce(X @ coef.T + head.bias, axis=1)
    expected = dice_scores(head.weight, head.bias, X.mean(0), X, percent)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
