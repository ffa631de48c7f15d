"""How fast pods compute prompts, learnt from the prefill legs that they have completed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pdrouter.load.static_shapes import ANY_SHAPE, StaticShapes

_FORGET_CURVE = 0.995
_FORGET_SCALE = 0.95
_PRIOR_WEIGHT = 3.0
_PRIOR_TOKENS = 2000.0
_UNIT_TOKENS = 2000.0
"""Length of the prompt that is one unit of work."""
_LEAST_LINEAR = 1e-8
_LEAST_FACTOR = 1e-3


class PrefillCurve(msgspec.Struct, frozen=True):
    """How fast pods were at one moment.

    Attributes:
        linear: seconds per token on the fastest pod.
        quadratic: seconds per token and token.
        factors: how many times longer than the fastest pods take, by UID; 1 where absent.
        shapes: what pods are compiled for, by UID.
        default: what all others are compiled for.
    """

    linear: float
    quadratic: float
    factors: Mapping[str, float]
    shapes: Mapping[str, StaticShapes]
    default: StaticShapes

    def predict(self, uid: str, tokens: int) -> float:
        """Return the seconds that a pod needed for so many prompt tokens."""
        passes, tokens = self.shapes.get(uid, self.default).divide(tokens)
        seconds = passes * (tokens * (self.linear + self.quadratic * tokens))
        return seconds * self.factors.get(uid, 1.0)

    def count_padded(self, uid: str, tokens: int) -> int | None:
        """Return how many tokens a pod computed for so many; None if it is of no static shapes."""
        shapes = self.shapes.get(uid, self.default)
        return shapes.pad(tokens) if shapes.buckets else None


@dataclass(slots=True)
class _Scale:
    """How much slower than the curve one pod is: a ratio of sums that fade."""

    observed: float
    predicted: float

    @property
    def factor(self) -> float:
        return self.observed / self.predicted


class PrefillRates:
    """Predicts the seconds that a prompt takes.

    The shape of the curve is common to all pods: seconds = linear * n + quadratic * n * n, because
    attention makes long prompts dearer per token. How fast a pod is in comparison is its own.

    The curve is that of the fastest pod. Fitted to seconds from which each pod's own factor was
    taken out altogether, curve and factors could drift, in opposite directions; fitted to the mean
    pod, it would follow what other routers' requests make pods wait.

    Work that waits is kept as multiples of one prompt of a usual length: what that takes follows
    from the newest curve at any time, without looking at each leg again.

    An engine of static shapes takes a prompt in passes, each as long as if it were full: their
    number, and the curve's seconds for one of them, are what a prompt takes there.

    Attributes:
        unit_s: seconds that the fastest pod needs for one unit of work.
        factors: how many times longer than the fastest pods take, by UID; 1 where absent. What is
            learnt makes a new mapping: those who keep one keep what was known.
        shapes: what pods are compiled for, by UID, as their engines say; empty where it is set.
        default: what all others are compiled for.
    """

    __slots__ = (
        "_linear",
        "_moments",
        "_quadratic",
        "_scales",
        "default",
        "factors",
        "shapes",
        "unit_s",
    )

    def __init__(self, tokens_per_s: float = 8000.0, buckets: Sequence[int] = ()) -> None:
        """Start with a guess.

        Args:
            tokens_per_s: rate to assume before anything is known.
            buckets: prompt lengths that engines of static shapes are compiled for, ascending; they
                go before what engines say. Empty: what engines say.
        """
        self.default = StaticShapes(tuple(buckets)) if buckets else ANY_SHAPE
        self.shapes: Mapping[str, StaticShapes] = {}
        self._linear = 1.0 / tokens_per_s
        self._quadratic = 0.0
        self.unit_s = _UNIT_TOKENS * self._linear
        self._scales: dict[str, _Scale] = {}
        self.factors: Mapping[str, float] = {}
        # Sums for a fit of both coefficients by least squares, begun with the guess: of n^2, n^3,
        # n^4, n * seconds, n^2 * seconds.
        n = _PRIOR_TOKENS
        w = _PRIOR_WEIGHT
        seconds = n * self._linear
        self._moments = w * n**2, w * n**3, w * n**4 * 1.001, w * n * seconds, w * n**2 * seconds

    def predict(self, uid: str, tokens: int) -> float:
        """Return the seconds that a pod needs for so many prompt tokens that it has not cached."""
        work = self.measure(tokens, self.find_shapes(uid))
        return work * self.unit_s * self.factors.get(uid, 1.0)

    def freeze(self) -> PrefillCurve:
        """Return what is known now; it does not change any more."""
        return PrefillCurve(self._linear, self._quadratic, self.factors, self.shapes, self.default)

    def measure(self, tokens: int, shapes: StaticShapes) -> float:
        """Return the work that a prompt of this length is, in units, by the newest curve.

        Args:
            tokens: its length.
            shapes: what the pod is compiled for, as `find_shapes` says.
        """
        passes, tokens = shapes.divide(tokens)
        linear, quadratic = self._linear / self.unit_s, self._quadratic / self.unit_s
        return passes * (linear * tokens + quadratic * (tokens * tokens))

    def find_shapes(self, uid: str) -> StaticShapes:
        """Return what a pod is compiled for."""
        return self.shapes.get(uid, self.default)

    def note_buckets(self, uid: str, buckets: Sequence[int]) -> None:
        """Take what a pod's engine says it is compiled for, unless that is set.

        Args:
            uid: the pod.
            buckets: prompt lengths, ascending; empty if it does not say any.
        """
        if self.default.buckets or self.find_shapes(uid).buckets == tuple(buckets):
            return
        others = {each: shapes for each, shapes in self.shapes.items() if each != uid}
        if buckets:
            # Pods of one kind share one, so that a prompt is measured once for all of them.
            alike = (shapes for shapes in others.values() if shapes.buckets == tuple(buckets))
            others[uid] = next(alike, None) or StaticShapes(tuple(buckets))
        self.shapes = others

    def observe(self, uid: str, tokens: int, seconds: float) -> None:
        """Learn from a leg: so many tokens took a pod so long, others' work not counted.

        A pod that works on several legs at once completes some of them together: all of the time
        is then with the first of them, and the others took none. Sums make it right.
        """
        if tokens <= 0 or seconds < 0:
            return
        passes, tokens = self.find_shapes(uid).divide(tokens)
        curve = passes * (tokens * (self._linear + self._quadratic * tokens))
        scale = self._scales.get(uid)
        if scale is None:
            # Half of the first surprise may be chance.
            scale = self._scales[uid] = _Scale(curve, curve)
        scale.observed = scale.observed * _FORGET_SCALE + seconds
        scale.predicted = scale.predicted * _FORGET_SCALE + curve
        factor = max(scale.factor, _LEAST_FACTOR)
        self.factors = factors = {**self.factors, uid: factor}
        self._fit(float(tokens), passes, seconds * min(factors.values()) / factor / passes)

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self._scales.pop(uid, None)
        self.note_buckets(uid, ())
        if uid in self.factors:
            self.factors = {each: factor for each, factor in self.factors.items() if each != uid}

    def _fit(self, n: float, passes: int, seconds: float) -> None:
        """Fit the curve to what was seen: so many passes of n tokens took so long each."""
        n2, n3, n4, ns, n2s = self._moments
        square = n * n * (passes * passes)
        cube = square * n
        n2 = n2 * _FORGET_CURVE + square
        n3 = n3 * _FORGET_CURVE + cube
        n4 = n4 * _FORGET_CURVE + cube * n
        ns = ns * _FORGET_CURVE + n * (passes * passes) * seconds
        n2s = n2s * _FORGET_CURVE + square * seconds
        self._moments = n2, n3, n4, ns, n2s
        determinant = n2 * n4 - n3 * n3
        quadratic = (n2 * n2s - n3 * ns) / determinant if determinant > 0 else 0.0
        linear = (ns - quadratic * n3) / n2
        if quadratic < 0 or linear <= 0:
            # No such curve: prompts of about one length say nothing about its bend.
            quadratic, linear = 0.0, ns / n2
        self._linear, self._quadratic = max(linear, _LEAST_LINEAR), quadratic
        self.unit_s = _UNIT_TOKENS * (self._linear + _UNIT_TOKENS * self._quadratic)
