"""What scraping the engines' metrics has met, for metrics of our own."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class ScrapeStats:
    """What scraping the engines' metrics has met.

    Attributes:
        scrapes: scrapes that have ended, well or not.
        failures: those that gave no sample, by cause.
        seconds: time that all of them took.
    """

    scrapes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
