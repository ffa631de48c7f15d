"""Runs a workload through a simulated cluster that the router's own code routes."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from benchmarks.routing.cluster.decode_batch import DecodeTask
from benchmarks.routing.cluster.decode_engine import DecodeEngine
from benchmarks.routing.cluster.events import EventQueue
from benchmarks.routing.cluster.model import Hardware, Shape, check_memory
from benchmarks.routing.cluster.prefill_engine import PrefillEngine, PrefillTask
from benchmarks.routing.cluster.results import Passage, PodUse, SimulationResult
from benchmarks.routing.cluster.router_replica import RoutedLegs, RouterOptions, RouterReplica
from benchmarks.routing.cluster.token_gaps import TokenGaps
from benchmarks.routing.cluster.workers import share_knowledge
from benchmarks.routing.cluster.workload import BLOCK_TOKENS, SimulatedRequest, Workload
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ModelPods
from pdrouter.load.counters import MeanMeter
from pdrouter.load.samples import EngineSample
from pdrouter.routing.decision import RoutingFacts, Strategy

MODEL = "simulated"


class Simulation:
    """A cluster, its routers and the requests of a workload."""

    def __init__(
        self,
        workload: Workload,
        hardware: Hardware,
        shape: Shape,
        *,
        create_strategy: Callable[[], Strategy],
        options: RouterOptions,
        seed: int = 0,
        create_replica: type[RouterReplica] = RouterReplica,
    ) -> None:
        """Set up a cluster that has nothing cached and nothing to do.

        Args:
            workload: the requests.
            hardware: speeds and memory.
            shape: the pods.
            create_strategy: gives each replica of the router its strategy.
            options: how the replicas work.
            seed: where chance begins.
            create_replica: gives the replicas of the router.

        Raises:
            ValueError: a request does not fit into a pod's memory.
        """
        check_memory(hardware, workload)
        self._workload = workload
        self._events = events = EventQueue()
        by_priority = options.deadlines is not None
        self._prefill = _create_prefill(events, hardware, shape, by_priority=by_priority)
        self._decode = _create_decode(events, hardware, shape, by_priority=by_priority)
        pods = ModelPods.group(MODEL, make_pods(shape))
        self._workers = shape.workers
        self._replicas = [
            create_replica(
                create_strategy(),
                pods,
                replace(options, replica=index, replicas=shape.replicas),
                events.clock,
                random,
                sharing=sharing,
            )
            for index in range(shape.replicas)
            for random in (Random(f"{seed}/{index}"),)
            for sharing in share_knowledge(shape.workers, events, options.turn_s)
        ]
        self._options = options
        self._output_tokens = workload.mean_output_tokens
        self._generated = dict.fromkeys(self._decode, 0.0)
        self._gaps = {uid: MeanMeter() for uid in self._decode}
        self._passages: list[Passage] = []
        self._unfinished = len(workload.requests)

    def run(self) -> SimulationResult:
        """Serve all requests.

        Raises:
            RuntimeError: some requests have ended never, or twice: the model is wrong.
        """
        self._scrape()
        self._plan_arrival(0)
        self._events.run()
        if self._unfinished:
            raise RuntimeError(f"{self._unfinished} requests are left over")
        for replica in self._replicas:
            replica.state.catch_up()
        counted = {uid for replica in self._replicas for uid in replica.ledger.snapshot()}
        return SimulationResult(
            tuple(self._passages),
            tuple(PodUse(uid, engine.busy_s) for uid, engine in self._prefill.items()),
            tuple(
                PodUse(uid, engine.busy_s, engine.preemptions)
                for uid, engine in self._decode.items()
            ),
            tuple(sorted(counted)),
            TokenGaps.join(engine.gaps for engine in self._decode.values()),
        )

    def _plan_arrival(self, index: int) -> None:
        requests = self._workload.requests
        if index < len(requests):
            request = requests[index]

            def arrive() -> None:
                self._route(request, self._replicas[index % len(self._replicas)])
                self._plan_arrival(index + 1)

            self._events.schedule(request.arrival_s, arrive)

    def _route(self, request: SimulatedRequest, replica: RouterReplica) -> None:
        passage = Passage(request)
        self._passages.append(passage)
        output = self._output_tokens
        facts = RoutingFacts(
            request.prompt_tokens, None, request.prompt, output, usual_output_tokens=output
        )
        passage.best_cached_tokens = self._find_best_cached(request)
        legs = replica.route(facts)
        if legs is None:
            self._unfinished -= 1
            return
        decision = legs.decision
        passage.decode_uid = decision.last.pod.uid
        if decision.prefill is None:
            self._start_decode(passage, legs, None)
            return
        passage.prefill_uid = decision.prefill.pod.uid
        engine = self._prefill[passage.prefill_uid]

        def hand_over(task: PrefillTask) -> None:
            passage.computed_s = self._events.now
            passage.cached_tokens = task.cached
            legs.finish_prefill(request.prompt_tokens - task.cached)
            self._start_decode(passage, legs, lambda: engine.release(task))

        engine.submit(PrefillTask(request.prompt, hand_over, legs.priority))

    def _find_best_cached(self, request: SimulatedRequest) -> int:
        """Return the most tokens of the prompt, less the last, that any prefill pod has."""
        hashes = request.prompt.hashes
        blocks = max(engine.cache.match(hashes) for engine in self._prefill.values())
        return min(blocks, (request.prompt_tokens - 1) // BLOCK_TOKENS) * BLOCK_TOKENS

    def _start_decode(
        self, passage: Passage, legs: RoutedLegs, on_received: Callable[[], None] | None
    ) -> None:
        def note_first_token() -> None:
            passage.first_token_s = self._events.now
            legs.note_first_token(self._events.now - sent_s)
            if not passage.prefill_uid:
                passage.cached_tokens = task.cached

        def finish() -> None:
            passage.finished_s = self._events.now
            legs.finish()
            self._unfinished -= 1

        sent_s = self._events.now
        task = DecodeTask(passage.request, note_first_token, finish, on_received, legs.priority)
        self._decode[passage.decode_uid].submit(task)

    def _scrape(self) -> None:
        """Let the replicas see the engines' metrics, and again after the interval."""
        interval = self._options.scrape_interval_s
        now = self._events.now
        samples = {
            uid: EngineSample(
                at=now,
                running=engine.running,
                waiting=engine.waiting,
                kv_usage=engine.cache.usage,
                kv_capacity_tokens=engine.cache.capacity * BLOCK_TOKENS,
                prefill_seconds=engine.mean_prefill_s,
            )
            for uid, engine in self._prefill.items()
        }
        for uid, decode in self._decode.items():
            generated, gaps = decode.generated_tokens, decode.gaps
            samples[uid] = EngineSample(
                at=now,
                running=decode.running,
                waiting=decode.waiting,
                kv_usage=decode.kv_usage,
                kv_capacity_tokens=decode.kv_capacity,
                generated_tokens_per_s=(generated - self._generated[uid]) / interval,
                gap_s=self._gaps[uid].read(now, gaps.seconds, gaps.tokens),
            )
            self._generated[uid] = generated
        # One worker of each looks for all.
        for replica in self._replicas[:: self._workers]:
            replica.observe(samples)
        if self._unfinished:
            self._events.schedule(now + interval, self._scrape)


def make_pods(shape: Shape) -> list[Pod]:
    """Return the pods of a cluster of this shape."""
    roles = [(Role.PREFILL, index) for index in range(len(shape.prefill))]
    roles += [(Role.DECODE, index) for index in range(len(shape.decode))]
    return [
        Pod.create(
            uid=f"{role}-{index}",
            name=f"{role}-{index}",
            ip=f"10.0.{number // 250}.{number % 250 + 1}",
            port=8000,
            model=MODEL,
            role=role,
        )
        for number, (role, index) in enumerate(roles)
    ]


def _create_prefill(
    events: EventQueue, hardware: Hardware, shape: Shape, *, by_priority: bool
) -> dict[str, PrefillEngine]:
    return {
        f"prefill-{index}": PrefillEngine(
            events,
            hardware.prefill,
            hardware.prefill_kv_tokens,
            slowness,
            by_priority=by_priority,
        )
        for index, slowness in enumerate(shape.prefill)
    }


def _create_decode(
    events: EventQueue, hardware: Hardware, shape: Shape, *, by_priority: bool
) -> dict[str, DecodeEngine]:
    return {
        f"decode-{index}": DecodeEngine(
            events,
            hardware.decode,
            hardware.local_prefill,
            hardware.link,
            kv_tokens=hardware.decode_kv_tokens,
            slowness=slowness,
            by_priority=by_priority,
        )
        for index, slowness in enumerate(shape.decode)
    }
