"""The private names of scikit-learn that skdice uses, kept in one place."""

import re
from numbers import Real
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import _BaseComposition as Composition
from sklearn.utils.validation import _check_method_params as select_rows_of_params

try:
    from sklearn.utils._repr_html.estimator import _VisualBlock as VisualBlock
except ImportError:  # scikit-learn before 1.8
    from sklearn.utils._estimator_html_repr import _VisualBlock as VisualBlock

__all__ = [
    "Composition",
    "HasMethods",
    "Interval",
    "InvalidParameterError",
    "MatchingOptions",
    "RealNotInt",
    "StrOptions",
    "VisualBlock",
    "select_rows_of_params",
    "validate_parameters",
]


class MatchingOptions(StrOptions):
    """Constraint of a parameter: a string of a set, or one that matches a regular expression.

    Parameters
    ----------
    options : set of str
        Valid strings. Messages list them, so an example of the pattern may be among them.
    pattern : str
        Regular expression that has to match the whole of any other string.
    """

    def __init__(self, options: set[str], pattern: str) -> None:
        super().__init__(options)
        self.pattern = pattern

    def is_satisfied_by(self, val: Any) -> bool:
        """Return whether a value satisfies the constraint."""
        return isinstance(val, str) and (
            val in self.options or re.fullmatch(self.pattern, val) is not None
        )


def validate_parameters(estimator: BaseEstimator) -> None:
    """Raise scikit-learn's InvalidParameterError for a parameter out of its constraints.

    The message says so if a percentage was given in place of a fraction.
    """
    name, parameters = type(estimator).__name__, estimator.get_params(deep=False)
    constraints: dict[str, list[Any]] = estimator._parameter_constraints
    for parameter, value in parameters.items():
        try:
            validate_parameter_constraints(
                {parameter: constraints[parameter]}, {parameter: value}, caller_name=name
            )
        except InvalidParameterError as error:
            if _looks_like_percent(value, constraints[parameter]):
                raise InvalidParameterError(
                    f"{error} It is a fraction, not a percent: did you mean {value / 100:g}?"
                ) from None
            raise


def _looks_like_percent(value: Any, constraints: Any) -> bool:
    if not isinstance(value, Real):
        return False
    is_fraction = any(
        isinstance(constraint, Interval) and constraint.left == 0 and constraint.right in (0.5, 1)
        for constraint in constraints
    )
    return is_fraction and 1 < float(value) <= 100
