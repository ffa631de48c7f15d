"""What the router's own steps cost for one request, beside parsing and dumping the same body.

Every step is timed in turns with the reference, so that a change of the machine's speed meets both.
"""

import asyncio
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from benchmarks.exchange import RequestBench
from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.view import ClusterView, ModelPods
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.split import Leg, Placement
from pdrouter.engines.vllm.nixl import NixlPull
from pdrouter.extproc.codec import decode, encode
from pdrouter.extproc.ext_proc_pb2 import ProcessingRequest
from pdrouter.extproc.messages import Phase, PhaseReply, ReplaceBody
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.ledger import Ledger
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.samples import EngineSample
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.prompt_prefix import hash_prompt
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.routing.decision import RoutingFacts
from pdrouter.routing.router import Router, RoutingRules
from pdrouter.routing.state import RoutingState
from pdrouter.routing.strategies import create_strategies
from pdrouter.routing.strategy_book import StrategyBook
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.settings.choices import Aggregation

ROUNDS = 9
SECONDS_PER_TURN = 0.02
DECODES_PER_POD = 4
CHAT = ENDPOINTS["/v1/chat/completions"]
ANSWER = json.dumps(
    {
        "choices": [{"message": {"content": "x"}}],
        "usage": {
            "prompt_tokens": 2000,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 1024},
        },
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(500))],
            "remote_engine_id": "engine",
            "remote_request_id": "request",
            "remote_host": "10.0.0.1",
            "remote_port": 5600,
        },
    }
).encode()


def make_body(size: int) -> bytes:
    """Return a chat request of about this size in bytes."""
    text = "The quick brown fox jumps over the lazy dog. " * 8
    messages = [{"role": "user", "content": text} for _ in range(max(1, size // len(text)))]
    return json.dumps({"model": "m", "messages": messages, "stream": True}).encode()


def make_pods(count: int, engine: str = "vllm", kv_connector: str | None = None) -> list[Pod]:
    """Return as many pods, half of them for prefill."""
    return [
        Pod.create(
            uid=f"{role}-{index}",
            name=f"{role}-{index}",
            ip=f"10.0.{index // 250}.{index % 250 + 1}",
            port=8000,
            model="m",
            role=role,
            engine=engine,
            kv_connector=kv_connector,
        )
        for index in range(count // 2)
        for role in (Role.PREFILL, Role.DECODE)
    ]


def parse(body: bytes) -> InferenceRequest:
    """Validate a body as the router does."""
    return parse_request(CHAT, "", body, transfer_members=TRANSFER_MEMBERS, split_multimodal=False)


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds of CPU that one call takes, on average over a turn."""
    calls, spent = 0, 0.0
    while spent < SECONDS_PER_TURN:
        start = time.process_time()
        for _ in range(10):
            call()
        spent += time.process_time() - start
        calls += 10
    return spent / calls


def compare(steps: dict[str, Callable[[], object]], reference: Callable[[], object]) -> None:
    """Print the median cost of each step, and its ratio to the reference."""
    costs: dict[str, list[float]] = {name: [] for name in (*steps, "json")}
    for _ in range(ROUNDS):
        for name, call in (*steps.items(), ("json", reference)):
            costs[name].append(time_call(call))
    base = statistics.median(costs["json"])
    for name, samples in costs.items():
        cost = statistics.median(samples)
        print(f"  {name:28} {cost * 1e6:9.1f} us  {cost / base:6.2f} x json")


def bench_orders(size: int) -> None:
    """Measure an exchange whose legs run at once, beside one whose legs do not.

    Those that run at once are tasks of an event loop, so the other is run in one too.
    """
    body = make_body(size)
    wires = {
        "one leg after the other": ("vllm", None),
        "at once, SGLang": ("sglang", None),
        "at once, P2P": ("vllm", "offloading"),
    }
    benches = {}
    for name, (engine, kv_connector) in wires.items():
        prefill, decode = make_pods(2, engine, kv_connector)
        benches[name] = RequestBench(prefill, decode, body, ANSWER)
    print(
        f"\none exchange in an event loop, body of {len(body):,} bytes; json = loads and two dumps"
    )
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        loop = runner.get_loop()
        compare(
            {name: partial(bench.serve, loop) for name, bench in benches.items()},
            lambda: (json.dumps(json.loads(body)), json.dumps(json.loads(ANSWER))),
        )


def bench_body(size: int) -> None:
    """Measure the steps that handle the body."""
    body = make_body(size)
    request = parse(body)
    connector = NixlPull()
    pods = make_pods(2)
    placement = Placement({Leg.PREFILL: pods[0], Leg.DECODE: pods[1]}, "id")
    answers = [LegAnswer(Leg.PREFILL, pods[0], "id", ANSWER, None)]
    message = ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = True
    data = message.SerializeToString()
    decode_body = connector.last_body(request, placement, answers)
    reply = PhaseReply(
        Phase.REQUEST_BODY,
        set_headers=(("target-pod", "10.0.0.1:8000"), ("x-request-id", "0" * 36)),
        body=ReplaceBody(decode_body),
        clear_route_cache=True,
    )
    prefill_pod, decode_pod = make_pods(2)
    bench = RequestBench(prefill_pod, decode_pod, body, ANSWER)
    print(f"\nbody of {len(body):,} bytes; json = loads and two dumps")
    compare(
        {
            "one exchange": bench.serve,
            "read the ext_proc message": lambda: decode(data),
            "index and validate": lambda: parse(body),
            "prefill body": lambda: connector.side_body(Leg.PREFILL, request, placement),
            "decode body": lambda: connector.last_body(request, placement, answers),
            "write the ext_proc reply": lambda: encode(reply),
        },
        lambda: (json.dumps(json.loads(body)), json.dumps(json.loads(ANSWER))),
    )


def make_busy_state(
    pods: ModelPods, hashes: Sequence[int], cached_blocks: Sequence[int]
) -> RoutingState:
    """Return the state of pods that all have requests of ours, and have completed some.

    Args:
        pods: the pods.
        hashes: the blocks of a prompt.
        cached_blocks: how many of them each prefill pod has cached.
    """
    ledger = Ledger()
    prefixes = PrefixIndex(1 << 26, 1200, time.monotonic)
    for number, (pod, cached) in enumerate(zip(pods.prefill, cached_blocks, strict=False)):
        prefixes.add(hashes[:cached], pod.uid)
        ledger.rates.observe(pod.uid, (4_000, 4_000**2), 0.4 + number / 1_000)
        for _ in range(2):
            ledger.start(Leg.PREFILL, pod.uid, 4_000)
    for pod in pods.partners:
        for _ in range(DECODES_PER_POD):
            ledger.start(Leg.DECODE, pod.uid, 8_000)
    samples = {
        pod.uid: EngineSample(
            0.0,
            own_requests=DECODES_PER_POD,
            running=float(DECODES_PER_POD),
            waiting=0.0,
            kv_usage=0.1,
            kv_capacity_tokens=10**6,
            gap_s=0.02,
        )
        for pod in pods.partners
    }
    whole, decoded = WholeServing(0.05), DecodedPrompts()
    for pod, cached in zip(pods.whole, cached_blocks, strict=False):
        whole.begin(pod.uid, 0.0)
        whole.observe(pod.uid, 1.0, 1.0)
        decoded.add(hashes[:cached], pod.uid, rest_tokens=100, written_tokens=8_000)
    return RoutingState(
        ledger, prefixes, samples, time.monotonic, Random(1), whole=whole, decoded=decoded
    )


def bench_routing(count: int) -> None:
    """Measure a decision among so many busy pods, of which some have cached a part of the prompt.

    Usually few have more of it than a system prompt that all have. At worst, each has another part.
    """
    pods = ClusterView.build(make_pods(count)).models["m"]
    strategy = create_strategies()["pd"]
    request = parse(make_body(32768))
    body = request.body.data
    blocks = len(hash_prompt(request).hashes)
    usual = [blocks - 1 - number if number < 3 else blocks // 8 for number in range(count)]
    worst = [number % (blocks + 1) for number in range(count)]
    print(f"\ndecision among {count:,} busy pods, 32 KB prompt; json = loads of its body")

    def prepare(
        cached_blocks: Sequence[int], aggregation: Aggregation = Aggregation.NEVER
    ) -> Callable[[], object]:
        state = make_busy_state(pods, hash_prompt(request).hashes, cached_blocks)
        router = Router(StrategyBook({"pd": strategy}), state, RoutingRules(aggregation))

        def decide() -> object:
            facts = RoutingFacts(8192, None, hash_prompt(request), output_tokens=200)
            return router.decide(strategy, facts, pods)

        return decide

    compare(
        {
            "usual prefixes": prepare(usual),
            "another prefix on each pod": prepare(worst),
            "usual prefixes, when-faster": prepare(usual, Aggregation.WHEN_FASTER),
            "another on each, when-faster": prepare(worst, Aggregation.WHEN_FASTER),
        },
        lambda: json.loads(bytes(body)),
    )


def main() -> None:
    """Run all of it."""
    gc.freeze()
    for size in (1_000, 8_000, 64_000, 1_000_000):
        bench_body(size)
        bench_orders(size)
    for count in (4, 100, 1000):
        bench_routing(count)


if __name__ == "__main__":
    main()
