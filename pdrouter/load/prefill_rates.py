"""How fast pods compute prompts, learnt from the prefill legs that they have completed."""

from collections.abc import Mapping, Sequence

import msgspec

from pdrouter.load.pod_speeds import PodKind, PodSpeeds
from pdrouter.load.static_shapes import ANY_SHAPE, StaticShapes

_FORGET_CURVE = 0.995
_PRIOR_WEIGHT = 2.0
_PRIOR_TOKENS = 500.0
"""The guess counts as so many legs of that length: pods that compute little are learnt too."""
_PRIOR_LOOKS = 16_000.0**2
"""That attention costs nothing counts as so many legs that look so often: a first leg that takes
longer than was guessed does not look like a bend of the curve."""
_UNIT_TOKENS = 2000.0
"""Length of the prompt that is one unit of work."""
_LEAST_LINEAR = 1e-8


class PrefillCurve(msgspec.Struct, frozen=True):
    """How fast pods were at one moment.

    Attributes:
        linear: seconds per token on a usual pod.
        quadratic: seconds per token and token that it looks at.
        factors: how many times longer than that pods take, by UID; 1 where absent.
        shapes: what pods are compiled for, by UID.
        default: what all others are compiled for.
    """

    linear: float
    quadratic: float
    factors: Mapping[str, float]
    shapes: Mapping[str, StaticShapes]
    default: StaticShapes

    def predict(self, uid: str, tokens: int, cached: int = 0) -> float:
        """Return the seconds that a pod needed for so many prompt tokens behind cached ones."""
        size, looks = self.shapes.get(uid, self.default).weigh(tokens, cached)
        return (self.linear * size + self.quadratic * looks) * self.factors.get(uid, 1.0)

    def count_padded(self, uid: str, tokens: int) -> int | None:
        """Return how many tokens a pod computed for so many; None if it is of no static shapes."""
        shapes = self.shapes.get(uid, self.default)
        return shapes.pad(tokens) if shapes.buckets else None


class PrefillRates:
    """Predicts the seconds that a prompt takes.

    The shape of the curve is common to all pods: seconds = linear * tokens + quadratic * looks,
    where a token looks at each one before it, cached ones too. So long prompts are dearer per
    token, and so is what follows a long cached prefix. How fast a pod is in comparison is its own.

    The curve is that of the usual pod, as `PodSpeeds` has it: the seconds of a pod that stands out
    are divided by its factor before they are fitted.

    Work that waits is kept as multiples of one prompt of a usual length: what that takes follows
    from the newest curve at any time, without looking at each leg again.

    An engine of static shapes takes a prompt in passes, each as long as if it were full: their
    number, and the curve's seconds for one of them, are what a prompt takes there.

    Attributes:
        unit_s: seconds that a usual pod needs for one unit of work.
        shapes: what pods are compiled for, by UID, as their engines say; empty where it is set.
        default: what all others are compiled for.
        speeds: how many times longer than usual pods take.
    """

    __slots__ = (
        "_linear",
        "_moments",
        "_quadratic",
        "_unit_linear",
        "_unit_quadratic",
        "default",
        "shapes",
        "speeds",
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
        self._set_curve(1.0 / tokens_per_s, 0.0)
        self.speeds = PodSpeeds()
        # Sums for a fit of both coefficients by least squares, begun with the guess: of the squares
        # and products of tokens, looks and seconds.
        n = _PRIOR_TOKENS
        w = _PRIOR_WEIGHT
        seconds = n * self._linear
        looks2 = w * (n**4 + _PRIOR_LOOKS**2)
        self._moments = w * n**2, w * n**3, looks2, w * n * seconds, w * n**2 * seconds

    def predict(self, uid: str, tokens: int, cached: int = 0) -> float:
        """Return the seconds that a pod needs for so many prompt tokens behind cached ones."""
        work = self.measure(tokens, self.find_shapes(uid), cached)
        return work * self.unit_s * self.speeds.factors.get(uid, 1.0)

    def freeze(self) -> PrefillCurve:
        """Return what is known now; it does not change any more."""
        return PrefillCurve(
            self._linear, self._quadratic, self.speeds.factors, self.shapes, self.default
        )

    def measure(self, tokens: int, shapes: StaticShapes, cached: int = 0) -> float:
        """Return the work that so much of a prompt is, in units, by the newest curve.

        Args:
            tokens: what is to be computed of it.
            shapes: what the pod is compiled for, as `find_shapes` says.
            cached: what is cached of it, before that.
        """
        size, looks = shapes.weigh(tokens, cached)
        return self._unit_linear * size + self._unit_quadratic * looks

    def convert(self, weight: tuple[int, int]) -> float:
        """Return the work that so many tokens, and looks of them, are, in units."""
        size, looks = weight
        return self._unit_linear * size + self._unit_quadratic * looks

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

    def note_kind(self, uid: str, kind: PodKind) -> None:
        """Take which pods a pod's speed is compared with."""
        self.speeds.note_kind(uid, kind)

    def observe(self, uid: str, weight: tuple[int, int], seconds: float) -> None:
        """Learn from a leg: so many tokens, and looks of them, took a pod so long.

        Others' work is not counted.

        A pod that works on several legs at once completes some of them together: all of the time
        is then with the first of them, and the others took none. Sums make it right.
        """
        size, looks = weight
        if size <= 0 or seconds < 0:
            return
        self.speeds.observe(uid, seconds, self._linear * size + self._quadratic * looks)
        self._fit(float(size), float(looks), seconds / self.speeds.factors.get(uid, 1.0))

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone."""
        self.note_buckets(uid, ())
        self.speeds.forget(uid)

    def _fit(self, size: float, looks: float, seconds: float) -> None:
        """Fit the curve to what was seen: so many tokens, and looks of them, took so long."""
        n2, n3, n4, ns, n2s = self._moments
        n2 = n2 * _FORGET_CURVE + size * size
        n3 = n3 * _FORGET_CURVE + size * looks
        n4 = n4 * _FORGET_CURVE + looks * looks
        ns = ns * _FORGET_CURVE + size * seconds
        n2s = n2s * _FORGET_CURVE + looks * seconds
        self._moments = n2, n3, n4, ns, n2s
        determinant = n2 * n4 - n3 * n3
        quadratic = (n2 * n2s - n3 * ns) / determinant if determinant > 0 else 0.0
        linear = (ns - quadratic * n3) / n2
        if quadratic < 0 or linear <= 0:
            # No such curve: prompts of about one length say nothing about its bend.
            quadratic, linear = 0.0, ns / n2
        self._set_curve(max(linear, _LEAST_LINEAR), quadratic)

    def _set_curve(self, linear: float, quadratic: float) -> None:
        self._linear, self._quadratic = linear, quadratic
        self.unit_s = unit_s = _UNIT_TOKENS * (linear + _UNIT_TOKENS * quadratic)
        self._unit_linear, self._unit_quadratic = linear / unit_s, quadratic / unit_s
