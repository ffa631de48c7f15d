"""Which split and which metrics a pod's engine and KV connector mean.

Another engine is a folder and a line in each of the two tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from pdrouter.engines.neuron.legacy import NeuronLegacy
from pdrouter.engines.reading import MetricsDialect
from pdrouter.engines.sglang import metrics as sglang
from pdrouter.engines.sglang.bootstrap import FITS, Bootstrap
from pdrouter.engines.split import Order, Split
from pdrouter.engines.trtllm import metrics as trtllm
from pdrouter.engines.trtllm.context_first import ContextFirst
from pdrouter.engines.trtllm.generation_first import GenerationFirst
from pdrouter.engines.vllm import metrics as vllm
from pdrouter.engines.vllm import priority, questions
from pdrouter.engines.vllm.mooncake import Mooncake
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.engines.vllm.nixl_push import NixlPush
from pdrouter.engines.vllm.p2p import P2p
from pdrouter.engines.xdit import paths as xdit
from pdrouter.engines.xllm import metrics as xllm
from pdrouter.settings.choices import (
    WHOLE_ONLY_ENGINES,
    LegOrder,
    RemoteHostRewrite,
    TrtllmOrder,
)

Question: TypeAlias = Callable[[str, str], tuple[str, Mapping[str, Any]]]
"""Takes a path and a model; gives the path and the members of a request that any engine can do."""


@dataclass(frozen=True, slots=True)
class SplitRules:
    """What an operator decides about how requests are split.

    Attributes:
        remote_host_rewrite: when to replace `remote_host` in a NIXL handle.
        leg_order: whether legs run at once where the wire has a way.
        token_ids_limit: bytes of a decode body up to which it has the ids of the prompt's tokens; 0
            where they are not asked for.
        trtllm_key: what TensorRT-LLM's hand-overs are signed with; empty for no signatures.
        trtllm_machine: number of this router among those that use the same TensorRT-LLM engines;
            None to draw it for each request.
        trtllm_order: whether their generation leg waits for the context leg.
        sglang_n: whether SGLang's engines can compute several choices in two legs.
    """

    remote_host_rewrite: RemoteHostRewrite = RemoteHostRewrite.AUTO
    leg_order: LegOrder = LegOrder.AUTO
    token_ids_limit: int = 0
    trtllm_key: bytes = field(default=b"", repr=False)
    trtllm_machine: int | None = None
    trtllm_order: TrtllmOrder = TrtllmOrder.CONTEXT_FIRST
    sglang_n: bool = True

    @property
    def order(self) -> Order:
        """The order of legs where the wire has both."""
        return Order.SERIAL if self.leg_order is LegOrder.SERIAL else Order.TOGETHER


def _create_pull(rules: SplitRules) -> NixlPull:
    return NixlPull(rules.remote_host_rewrite, rules.token_ids_limit)


def _create_pull_with_source(rules: SplitRules) -> Split:
    return replace(_create_pull(rules), name="nixl-p2p", takes_source=True)


def _create_push(rules: SplitRules) -> Split:
    return NixlPush(_create_pull(rules), order=rules.order)


def _create_bootstrap(rules: SplitRules) -> Split:
    return Bootstrap(fits=FITS if rules.sglang_n else FITS - {"n"})


def _create_trtllm(rules: SplitRules) -> Split:
    if rules.trtllm_order is TrtllmOrder.GENERATION_FIRST:
        return GenerationFirst(rules.trtllm_key, rules.trtllm_machine)
    return ContextFirst(rules.trtllm_key, rules.trtllm_machine)


ONLY_WIRE = ""
"""In place of a KV connector's name, for engines whose wire is the same whatever theirs is."""
_SPLITS: Mapping[tuple[str, str], Callable[[SplitRules], Split]] = MappingProxyType(
    {
        ("vllm", "nixl"): _create_pull,
        ("vllm", "shfs"): _create_pull,
        ("vllm", "nixl-push"): _create_push,
        ("vllm", "neuron-write"): _create_push,
        ("vllm", "mooncake"): lambda rules: Mooncake(rules.order),
        ("vllm", "offloading"): lambda rules: P2p(rules.order),
        ("vllm", "p2p"): lambda rules: P2p(rules.order),
        ("vllm", "nixl-p2p"): _create_pull_with_source,
        ("vllm", "neuron-legacy"): lambda _: NeuronLegacy(),
        ("sglang", ONLY_WIRE): _create_bootstrap,
        ("trtllm", ONLY_WIRE): _create_trtllm,
    }
)
_METRICS: Mapping[str, MetricsDialect] = MappingProxyType(
    {
        "vllm": vllm.METRICS,
        "sglang": sglang.METRICS,
        "trtllm": trtllm.METRICS,
        "xllm": xllm.METRICS,
    }
)
ENGINES = tuple(_METRICS)
"""Engines whose metrics are known."""
_QUESTIONS: Mapping[str, Question] = MappingProxyType({"vllm": questions.ask})
# SGLang takes the highest first unless it is told otherwise, and nobody can see whether it was.
_PRIORITY_PATHS: Mapping[str, frozenset[str]] = MappingProxyType({"vllm": priority.PATHS})
_OWN_PATHS: Mapping[str, Mapping[str, str]] = MappingProxyType({"xdit": xdit.PATHS})

WIRES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        engine: tuple(name for each, name in _SPLITS if each == engine and name != ONLY_WIRE)
        for engine in dict.fromkeys((*(engine for engine, _ in _SPLITS), *WHOLE_ONLY_ENGINES))
    }
)
"""Engines that can be spoken to, the default first, each with its KV connectors."""


def find_question(engine: str) -> Question | None:
    """Return how to ask an engine whether it is well; None where only requests can tell."""
    return _QUESTIONS.get(engine)


def can_rank(engine: str, path: str) -> bool:
    """Return whether an engine may take first what has the lowest `priority` on a path."""
    return path in _PRIORITY_PATHS.get(engine, ())


def find_path(engine: str, path: str) -> str:
    """Return where an engine takes what clients ask for at a path."""
    return _OWN_PATHS.get(engine, {}).get(path, path)


def has_metrics(engine: str) -> bool:
    """Return whether an engine is known to have metrics."""
    return engine in _METRICS


def find_dialect(engine: str) -> MetricsDialect:
    """Return how an engine gives its metrics; as vLLM does unless more is known."""
    return _METRICS.get(engine, vllm.METRICS)


_AS_A_RULE = SplitRules()


class Splits:
    """The splits by engine and connector."""

    def __init__(
        self,
        default: str = "shfs",
        nixl_means: str = "nixl",
        rules: SplitRules = _AS_A_RULE,
    ) -> None:
        """Set up the splits.

        Args:
            default: name of the connector of pods that name none.
            nixl_means: what `nixl` stands for, one of `NIXL_MEANINGS`.
            rules: what the operator decided.
        """
        made = {key: create(rules) for key, create in _SPLITS.items()}
        meanings: dict[str | None, str] = {name: name for _, name in _SPLITS}
        meanings["nixl"] = nixl_means
        meanings[None] = meanings.get(default, default)
        self._splits: dict[tuple[str, str | None], Split] = {
            (engine, name): made[engine, meaning]
            for name, meaning in meanings.items()
            for engine in WIRES
            if (engine, meaning) in made
        }

    def find(self, engine: str, connector: str | None) -> Split:
        """Return how an engine with that connector, or with the default for None, splits requests.

        Raises:
            KeyError: it does not, or not in a way that is known.
        """
        split = self._splits.get((engine, connector))
        return self._splits[engine, ONLY_WIRE] if split is None else split
