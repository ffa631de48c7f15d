"""How thoroughly a run measures, and with what."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.engines import Engines
from benchmarks.speed.variants import Contender


@dataclass(frozen=True, slots=True)
class Plan:
    """What all scenarios need.

    Attributes:
        engines: the engines that answer at once.
        directory: for files that nobody needs later.
        before: the Python of the earlier router that is measured beside.
        contenders: ext_proc servers that others have started.
        rounds: samples of each figure.
        quick: whether a look is enough: fewer cases, less time.
    """

    engines: Engines
    directory: Path
    before: Path
    contenders: Sequence[Contender]
    rounds: int
    quick: bool

    @property
    def sample_s(self) -> float:
        """Seconds of load for one sample."""
        return 0.4 if self.quick else 1.0

    def tell(self, text: str) -> None:
        """Say how far the run has come."""
        print(text, file=sys.stderr, flush=True)
