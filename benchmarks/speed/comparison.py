"""Says what differs between two reports beyond their noise.

`python -m benchmarks.speed.comparison OLD.json NEW.json`
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.results import Key, Results, Spread
from benchmarks.speed.variants import BEFORE, FLOOR, ROUTER

_LEAST_CHANGE = 0.02


@dataclass(frozen=True, slots=True)
class Change:
    """A figure that is another than before.

    Attributes:
        key: the figure.
        old: what it was.
        new: what it is.
        base: of which other variant's figure both are multiples; empty if they are absolute.
    """

    key: Key
    old: Spread
    new: Spread
    base: str = ""


def find_changes(old: Results, new: Results) -> list[Change]:
    """Return what has changed: the ranges of the rounds do not touch, and medians differ by 2 %.

    Where both reports have the figure of a variant that does not change with the router, multiples
    of it are compared: they do not depend on the machine's speed.
    """
    return [
        change
        for key in new.samples
        if (change := _compare(old, new, key)) and _is_beyond_noise(change.old, change.new)
    ]


def _compare(old: Results, new: Results, key: Key) -> Change | None:
    scenario, case, variant, figure = key
    if variant == ROUTER:
        for base in (BEFORE, FLOOR):
            before, after = (
                results.ratio(scenario, case, figure, variant, base) for results in (old, new)
            )
            if before and after:
                return Change(key, before, after, base)
    before, after = old.spread(*key), new.spread(*key)
    return Change(key, before, after) if before and after else None


def _is_beyond_noise(old: Spread, new: Spread) -> bool:
    apart = new.low > old.high or new.high < old.low
    return apart and abs(new.median - old.median) > _LEAST_CHANGE * abs(old.median)


def format_changes(changes: list[Change]) -> Iterator[str]:
    """Yield the lines of a table."""
    if not changes:
        yield "Nothing has changed beyond the noise."
        return
    yield "| scenario | case | variant | figure | old | new | change |"
    yield "|---|---|---|---|---|---|---|"
    for change in changes:
        scenario, case, variant, figure = change.key
        unit = f", x {change.base}" if change.base else ""
        old, new = change.old.median, change.new.median
        percent = f"{new / old - 1:+.0%}" if old else ""
        yield (
            f"| {scenario} | {case} | {variant} | {figure.replace('_', ' ')}{unit} "
            f"| {old:.4g} | {new:.4g} | {percent} |"
        )


def main() -> None:
    """Print the changes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.comparison", description=__doc__
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    for line in format_changes(find_changes(Results.read(options.old), Results.read(options.new))):
        print(line)


if __name__ == "__main__":
    main()
