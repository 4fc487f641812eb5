"""The way of a row through the code stays short enough to be followed."""

import sys
from pathlib import Path

import numpy as np
import pytest

import skdice
from skdice import DICEDetector, LinearHead

PACKAGE = str(Path(skdice.__file__).parent)


def functions_of(call):
    """Return the functions of skdice that a call runs through, as (file, name)."""
    call()  # What is done once for each process is no part of the way.
    functions = {}

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            functions[code.co_filename.removeprefix(PACKAGE), code.co_qualname] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(functions)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    X = np.maximum(rng.normal(size=(2000, 342)), 0)
    return DICEDetector(LinearHead(rng.normal(size=(10, 342)), np.zeros(10))).fit(X), X


def test_one_row_is_predicted_by_22_functions_of_6_files(problem):
    detector, X = problem
    functions = functions_of(lambda: detector.predict(X[:1]))
    assert ("/_base.py", "BaseDetector.predict") in functions
    assert len(functions) <= 22, functions
    assert len({file for file, _ in functions}) <= 6, functions


def test_a_fit_takes_50_functions(problem):
    detector, X = problem
    functions = functions_of(lambda: detector.fit(X))
    assert ("/_dice.py", "DICEDetector.fit") in functions
    assert len(functions) <= 50, functions
