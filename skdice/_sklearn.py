"""The private names of scikit-learn that skdice uses, kept in one place."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = ["Interval", "StrOptions", "validate_parameters"]


def validate_parameters(estimator: BaseEstimator) -> None:
    """Raise scikit-learn's InvalidParameterError for a parameter out of its constraints."""
    constraints: dict[str, list[Any]] = estimator._parameter_constraints
    validate_parameter_constraints(
        constraints,
        estimator.get_params(deep=False),
        caller_name=type(estimator).__name__,
    )
