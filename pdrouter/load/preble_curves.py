"""How long Preble's cost model takes prompts to be computed on two kinds of GPU."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

_SHORT, _MIDDLE, _LONG = 192, 384, 4096
_NEAR = 1024
_UTILIZATION = 0.9


class _Curve(NamedTuple):
    """Coefficients of milliseconds, by the tokens of a part of a prompt, and up to its end.

    Attributes:
        short: for a short part.
        middle: for a longer one: constant, linear and quadratic.
        long: for all others: constant and linear.
        near: of attention, where a part ends soon.
        far: of attention otherwise: constant and linear in where it ends.
        quadratic: beside that, for a very long part: constant, linear and quadratic.
    """

    short: float
    middle: tuple[float, float, float]
    long: tuple[float, float]
    near: float
    far: tuple[float, float]
    quadratic: tuple[float, float, float]


_V100 = _Curve(
    55.0,
    (-295.0, 3.125, -0.0064),
    (10.52444263, 0.27106428),
    0.80,
    (0.398, 4.65e-4),
    (-18.425, 9.65e-3, 5.4e-6),
)
_A6000 = _Curve(
    22.0,
    (-118.0, 1.25, -0.00256),
    (4.209777054806409, 0.10842571),
    0.32,
    (0.159, 1.86e-4),
    (-7.37, 3.86e-3, 2.16e-6),
)


def _predict(curve: _Curve, own: int, end: int) -> float:
    if own < _SHORT:
        linear = curve.short
    elif own < _MIDDLE:
        constant, slope, bend = curve.middle
        linear = constant + slope * own + bend * own * own
    else:
        constant, slope = curve.long
        linear = constant + slope * own
    attention = curve.near
    if end > _NEAR:
        constant, slope = curve.far
        attention = constant + slope * end
        # A part without tokens of its own counts as long as all before it.
        if 0 < own <= _NEAR:
            attention /= 2
    quadratic = 0.0
    if own >= _LONG:
        constant, slope, bend = curve.quadratic
        quadratic = constant + slope * own + bend * own * own
    return (linear + attention + quadratic) / _UTILIZATION


PREBLE_CURVES: Mapping[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "V100": lambda own, end: _predict(_V100, own, end),
        "A6000": lambda own, end: _predict(_A6000, own, end),
    }
)
"""`PREBLE_GPUS` of the settings: milliseconds by the tokens of a prompt's own part, and of all."""
