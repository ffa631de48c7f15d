"""What was measured: for each scenario, case and variant, figures with a sample per round."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self


class Key(NamedTuple):
    """Where a figure belongs.

    Attributes:
        scenario: the scenario.
        case: what was varied in it, such as the size of bodies.
        variant: who was measured.
        figure: name of the figure, which ends with its unit.
    """

    scenario: str
    case: str
    variant: str
    figure: str


@dataclass(frozen=True, slots=True)
class Spread:
    """The samples of a figure in short.

    Attributes:
        median: their median.
        low: the least of them.
        high: the greatest of them.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Summarize samples, at least one."""
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(slots=True)
class Results:
    """All that a run has measured.

    Attributes:
        about: the machine and the options.
        samples: the figures; the samples of all variants of a case come from the same rounds, in
            the same order.
    """

    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[Key, list[float]] = field(default_factory=dict)

    def add(self, scenario: str, case: str, variant: str, figures: Mapping[str, float]) -> None:
        """Add the figures of one round."""
        for name, value in figures.items():
            self.samples.setdefault(Key(scenario, case, variant, name), []).append(value)

    def spread(self, scenario: str, case: str, variant: str, figure: str) -> Spread | None:
        """Return a figure; None if it was not measured."""
        samples = self.samples.get(Key(scenario, case, variant, figure))
        return Spread.of(samples) if samples else None

    def ratio(
        self, scenario: str, case: str, figure: str, variant: str, base: str
    ) -> Spread | None:
        """Return a variant's figure as a multiple of another's, formed in each round.

        None where one of them was not measured.
        """
        ours = self.samples.get(Key(scenario, case, variant, figure))
        theirs = self.samples.get(Key(scenario, case, base, figure))
        if not ours or not theirs or not all(theirs):
            return None
        return Spread.of([own / other for own, other in zip(ours, theirs, strict=True)])

    def scenarios(self) -> list[str]:
        """Return the scenarios in the order in which they were run."""
        return list(dict.fromkeys(key.scenario for key in self.samples))

    def cases(self, scenario: str) -> list[str]:
        """Return the cases of a scenario."""
        return list(dict.fromkeys(key.case for key in self.samples if key.scenario == scenario))

    def variants(self, scenario: str) -> list[str]:
        """Return the variants of a scenario."""
        return list(dict.fromkeys(key.variant for key in self.samples if key.scenario == scenario))

    def write(self, path: Path) -> None:
        """Write a JSON file, a line for each figure."""
        lines = [
            json.dumps({**key._asdict(), "samples": [round(one, 4) for one in found]})
            for key, found in self.samples.items()
        ]
        about = json.dumps(self.about)
        path.write_text(f'{{"about": {about},\n"figures": [\n' + ",\n".join(lines) + "\n]}\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` has written.

        Raises:
            ValueError: it is no such file.
        """
        content = json.loads(path.read_text())
        try:
            return cls(
                content["about"],
                {
                    Key(*(figure[name] for name in Key._fields)): figure["samples"]
                    for figure in content["figures"]
                },
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no results of benchmarks.speed") from error
