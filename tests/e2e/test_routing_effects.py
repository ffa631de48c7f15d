"""What the choice of pods leads to: where prompts go by prefix, load, speed, memory and length."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
from annotated_pods import run_annotated
from expectations import (
    chat,
    connect,
    count_received,
    engines_of,
    eventually,
    expect_disaggregated,
    expect_error,
    expect_whole,
    read_admin,
    read_metrics,
    run_checked_stack,
)
from waiting import wait_until

from pdrouter.tools.local_stack import LocalStack, StackOptions
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine

CHAT = "/v1/chat/completions"
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")

LONG_BYTES = 16_000
TOKENS_PER_S = 25_000.0
"""A long prompt takes 160 ms: more than what a busy machine adds to it."""

PREFILL = tuple(
    EngineConfig(role="prefill", host=host, prefill_tokens_per_s=TOKENS_PER_S) for host in HOSTS
)
DECODE = (EngineConfig(role="decode", itl_ms=1),) * 3


def expect_rates(tokens_per_s: float, **environment: str) -> dict[str, str]:
    """Return settings by which nothing depends on which pod is measured first."""
    return {
        "PDROUTER_AGGREGATE": "never",
        "PDROUTER_PREFILL_TOKENS_PER_S": str(tokens_per_s),
        **environment,
    }


def make_text(topic: str, size: int) -> str:
    """Return a text of so many bytes that shares no prefix with that of another topic."""
    sentence = f"{topic}: "
    return (sentence * (size // len(sentence) + 1))[:size]


def ask_about(topic: str, question: str = "", size: int = LONG_BYTES) -> dict[str, Any]:
    """Return a request with a long text, and a question that comes after it."""
    return chat(messages=[{"role": "user", "content": f"{make_text(topic, size)} {question}"}])


async def send(client: httpx.AsyncClient, body: Mapping[str, Any]) -> httpx.Response:
    return await client.post(CHAT, json=body)


async def send_at_once(
    client: httpx.AsyncClient, bodies: Iterable[Mapping[str, Any]]
) -> list[httpx.Response]:
    return await asyncio.gather(*(send(client, body) for body in bodies))


def count_served(
    stack: LocalStack, responses: Iterable[httpx.Response]
) -> tuple[Counter[SimulatedEngine], Counter[SimulatedEngine]]:
    """Return how many of these responses each prefill and each decode engine has a part in."""
    pairs = [expect_disaggregated(stack, response) for response in responses]
    return (
        Counter(prefill.engine for prefill, _ in pairs),
        Counter(decode.engine for _, decode in pairs),
    )


# --- Prefixes and load -----------------------------------------------------------------------


async def test_requests_follow_their_prefix_and_prefixes_are_spread() -> None:
    options = StackOptions(prefill=PREFILL, decode=DECODE, environment=expect_rates(TOKENS_PER_S))
    topics = [f"document {number}" for number in range(9)]
    async with run_checked_stack(options) as stack, connect(stack) as client:
        first = await send_at_once(client, map(ask_about, topics))
        homes = [expect_disaggregated(stack, response)[0].engine for response in first]
        assert set(homes) == set(stack.prefill)
        assert max(Counter(homes).values()) <= 5
        for question in ("What is it about?", "Who wrote it?"):
            for topic, home in zip(topics, homes, strict=True):
                response = await send(client, ask_about(topic, question))
                prefill, _ = expect_disaggregated(stack, response)
                assert prefill.engine is home, topic


async def test_many_requests_with_one_long_prefix_share_a_prefill_pod() -> None:
    options = StackOptions(prefill=PREFILL, decode=DECODE, environment=expect_rates(TOKENS_PER_S))
    async with run_checked_stack(options) as stack, connect(stack) as client:
        responses = [
            await send(client, ask_about("the manual", f"question {number}"))
            for number in range(16)
        ]
        prefill, decode = count_served(stack, responses)
        assert len(prefill) == 1
        assert decode.total() == 16


async def test_a_burst_of_different_prompts_is_spread_over_all_pods() -> None:
    options = StackOptions(prefill=PREFILL, decode=DECODE, environment=expect_rates(TOKENS_PER_S))
    async with run_checked_stack(options) as stack, connect(stack) as client:
        bodies = [ask_about(f"burst {number}") for number in range(24)]
        for served, engines in zip(
            count_served(stack, await send_at_once(client, bodies)),
            (stack.prefill, stack.decode),
            strict=True,
        ):
            assert served.keys() == set(engines)
            # A fair share is 8.
            assert all(4 <= requests <= 12 for requests in served.values()), served


async def test_a_slow_prefill_pod_gets_less_once_it_has_been_measured() -> None:
    speeds = (TOKENS_PER_S, TOKENS_PER_S / 5)
    options = StackOptions(
        prefill=[
            EngineConfig(role="prefill", host=host, prefill_tokens_per_s=speed)
            for host, speed in zip(HOSTS[:2], speeds, strict=True)
        ],
        decode=DECODE,
        environment=expect_rates(TOKENS_PER_S / 2),
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        fast, slow = stack.prefill
        # Nothing is known of either: both get their half, and are measured by it.
        unknown, _ = count_served(
            stack, await send_at_once(client, [ask_about(f"unknown {i}") for i in range(14)])
        )
        assert min(unknown[fast], unknown[slow]) >= 5
        idle = [await send(client, ask_about(f"idle {number}")) for number in range(6)]
        assert count_served(stack, idle)[0] == {fast: 6}
        busy, _ = count_served(
            stack, await send_at_once(client, [ask_about(f"busy {i}") for i in range(24)])
        )
        assert 2 * busy[slow] < busy[fast]


async def test_prompts_go_by_the_buckets_that_engines_say_they_are_compiled_for() -> None:
    options = StackOptions(
        prefill=[
            EngineConfig(
                role="prefill",
                host=host,
                prefill_tokens_per_s=TOKENS_PER_S,
                prefill_buckets=buckets,
            )
            for host, buckets in zip(HOSTS[:2], ((4096,), (256, 4096)), strict=True)
        ],
        decode=DECODE,
        environment=expect_rates(TOKENS_PER_S),
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        coarse, fine = stack.prefill

        async def read_pods() -> dict[str, Any]:
            state = (await read_admin(stack, "/debug/state")).json()
            return {pod["address"]: pod for pod in state["pods"]}

        async def know_buckets() -> None:
            pods = await read_pods()
            assert pods[coarse.address]["prefill_buckets"] == [4096]
            assert pods[fine.address]["prefill_buckets"] == [256, 4096]

        await eventually(know_buckets)
        short = [await send(client, ask_about(f"short {i}", size=600)) for i in range(6)]
        assert count_served(stack, short)[0] == {fine: 6}
        decisions = (await read_admin(stack, "/debug/decisions")).json()["decisions"]
        for decision in decisions:
            parts = decision["prefill"]["parts"].values()
            assert {part["padded_tokens"] for part in parts} == {256, 4096}
        # Six short ones have not made it look fast for long ones.
        long = await send_at_once(client, [ask_about(f"long {i}") for i in range(12)])
        served = count_served(stack, long)[0]
        assert min(served[coarse], served[fine]) >= 5, served
        # A prompt above the largest bucket is computed in three passes of it.
        count_served(stack, [await send(client, ask_about("longest", size=3 * LONG_BYTES))])
        decisions = (await read_admin(stack, "/debug/decisions")).json()["decisions"]
        chosen = [decision["prefill"] for decision in decisions]
        predicted = [each["parts"][each["pod"]]["padded_tokens"] for each in chosen]
        assert sorted(predicted) == [*[256] * 6, *[4096] * 12, 3 * 4096]
        padding = "vllm_neuron:num_batched_tokens_padding_total"
        computed = [
            pod.count("vllm:prompt_tokens_total") + pod.count(padding) for pod in stack.prefill
        ]
        assert sum(computed) == sum(predicted)

        async def know_padding() -> None:
            pods = await read_pods()
            for pod in stack.prefill:
                assert pods[pod.address]["padded_tokens"] == pod.count(padding)

        await eventually(know_padding)


# --- KV memory of decode pods ----------------------------------------------------------------


async def wait_for_samples(stack: LocalStack) -> None:
    """Wait until the router has read every engine's metrics as they are now."""

    async def count() -> float:
        return (await read_metrics(stack)).total("pdrouter_scrapes_total")

    # Engines are read in turn: the first round may have begun before.
    target = await count() + 3 * len(engines_of(stack))

    async def read_again() -> None:
        assert await count() >= target

    await eventually(read_again)


async def test_a_decode_pod_without_kv_memory_gets_nothing_until_it_has_some() -> None:
    options = StackOptions(
        prefill=PREFILL,
        decode=(EngineConfig(role="decode", itl_ms=20, kv_blocks=256),) * 3,
        environment=expect_rates(TOKENS_PER_S, AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS="20"),
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        full, *others = stack.decode
        # Another client's request, of which the router knows by the engine's metrics alone.
        occupant = ask_about("occupant", size=20_000) | {"max_tokens": 20_000, "stream": True}
        async with client.stream("POST", f"http://{full.address}{CHAT}", json=occupant) as stream:
            assert stream.status_code == 200
            await wait_until(lambda: full.count("vllm:kv_cache_usage_perc") == 1.0)
            await wait_for_samples(stack)
            _, served = count_served(stack, await send_at_once(client, [chat()] * 12))
            assert served.keys() == set(others)
        await wait_until(lambda: full.count("vllm:kv_cache_usage_perc") == 0.0)
        await wait_for_samples(stack)
        _, served = count_served(stack, await send_at_once(client, [chat()] * 12))
        assert served.keys() == {full, *others}


async def test_open_streams_take_no_more_kv_memory_than_a_decode_pod_has() -> None:
    # Prompt and expected answer, 512 tokens, fit once into 63 blocks of 16 tokens.
    small = EngineConfig(role="decode", itl_ms=100, kv_blocks=63)
    large = EngineConfig(role="decode", itl_ms=100)
    options = StackOptions(
        prefill=PREFILL,
        decode=(small, large, large),
        environment=expect_rates(TOKENS_PER_S, AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS="20"),
    )
    async with run_checked_stack(options) as stack, connect(stack) as client:
        await wait_for_samples(stack)
        async with AsyncExitStack() as streams:
            request = chat(max_tokens=30_000, stream=True)
            held = [
                await streams.enter_async_context(client.stream("POST", CHAT, json=request))
                for _ in range(12)
            ]
            _, served = count_served(stack, held)
            # With the scores alone, it would have got a second one once the others had four.
            assert served[stack.decode[0]] == 1
            assert all(served[engine] >= 4 for engine in stack.decode[1:])


# --- What a model's owner asks for -----------------------------------------------------------


def bucket(lowest: int, highest: int, **members: Any) -> dict[str, Any]:
    """Return the configuration of a pod for prompts of such lengths, in tokens."""
    routing = {"promptLenBucketMinLength": lowest, "promptLenBucketMaxLength": highest}
    return {"profiles": {"default": {"routingConfig": routing | members}}}


SHORT, LONG, LONGER, LONGEST = 800, 8_000, 40_000, 100_000
"""Sizes of prompts in bytes, about four to a token."""


async def test_prompts_go_to_the_pods_for_their_length(tmp_path: Path) -> None:
    async with (
        run_annotated(
            tmp_path,
            [bucket(0, 1_000), bucket(1_001, 5_000)],
            combined=bucket(5_001, 15_000, combined=True),
            AIBRIX_PROMPT_LENGTH_BUCKETING="true",
        ) as stack,
        connect(stack) as client,
    ):
        bodies = [
            ask_about(f"topic {number}", size=size) for number in range(8) for size in (SHORT, LONG)
        ]
        responses = await send_at_once(client, bodies)
        for pair, own in enumerate((responses[::2], responses[1::2])):
            prefill, decode = count_served(stack, own)
            assert prefill == {stack.prefill[pair]: 8}
            assert decode == {stack.decode[pair]: 8}
            # What one pod must serve whole goes by its length as well.
            body = bodies[pair] | {"n": 2}
            assert expect_whole(stack, await send(client, body), "n").engine is stack.decode[pair]
        longer = await send(client, ask_about("longer", size=LONGER))
        assert expect_whole(stack, longer, "no-bucket").engine is stack.decode[2]
        before = count_received(stack)
        longest = await send(client, ask_about("longest", size=LONGEST))
        assert "tokens" in expect_error(longest, 503, "no_ready_pod")["message"]
        assert "retry-after" in longest.headers
        assert count_received(stack) == before


async def test_without_the_setting_lengths_in_annotations_mean_nothing(tmp_path: Path) -> None:
    configs = [bucket(0, 1_000), bucket(1_001, 5_000)]
    async with run_annotated(tmp_path, configs) as stack, connect(stack) as client:
        bodies = [ask_about(f"topic {number}", size=LONGER) for number in range(8)]
        prefill, decode = count_served(stack, await send_at_once(client, bodies))
        assert prefill.keys() == set(stack.prefill)
        assert decode.keys() == set(stack.decode)


PROFILES = {
    "defaultProfile": "short",
    "profiles": {
        "short": {"routingConfig": {"promptTokensLt": 1_000}},
        "long": {"routingStrategy": "random", "routingConfig": {"promptTokensGte": 1_000}},
    },
}


async def test_a_profile_is_chosen_by_name_or_by_the_prompt(tmp_path: Path) -> None:
    async with run_annotated(tmp_path, [PROFILES]) as stack, connect(stack) as client:
        cases = (
            (SHORT, None, "short", None),
            (LONG, None, "short", None),
            (SHORT, "auto", "short", "short"),
            (LONG, "auto", "long", "long"),
            (LONG, "AUTO", "long", "long"),
            (SHORT, "long", "long", None),
            (LONG, "short", "short", None),
            (LONG, "unknown", "short", None),
        )
        for size, asked, used, told in cases:
            headers = {} if asked is None else {"config-profile": asked}
            body = ask_about("topic", size=size)
            response = await client.post(CHAT, json=body, headers=headers)
            assert response.headers.get("x-aibrix-config-profile") == told, (size, asked)
            if used == "short":
                expect_disaggregated(stack, response)
            else:
                expect_whole(stack, response, "strategy-random")


async def test_a_limited_model_says_when_to_come_again(tmp_path: Path) -> None:
    config = {"profiles": {"default": {"requestsPerSecond": 1}}}
    async with run_annotated(tmp_path, [config]) as stack, connect(stack) as client:
        responses = await send_at_once(client, [chat()] * 12)
        refused = [response for response in responses if response.status_code != 200]
        served = [response for response in responses if response.status_code == 200]
        # More than the first only where the burst itself took seconds.
        assert served
        assert refused
        for response in refused:
            expect_error(response, 429, "rate_limit_exceeded")
            assert response.headers["retry-after"] == "1"
        count_served(stack, served)
        assert count_received(stack) == 2 * len(served)
        # Refused requests cost nothing: who waits as told is served.
        await asyncio.sleep(int(refused[-1].headers["retry-after"]))
        expect_disaggregated(stack, await send(client, chat()))
