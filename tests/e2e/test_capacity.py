"""How fast pods are, and how many the load wants, is told once it is known, and by the load."""

import asyncio

from expectations import chat, connect, eventually, read_metrics, run_checked_stack

from pdrouter.tools.local_stack import StackOptions
from pdrouter.tools.simulation.config import EngineConfig

CHAT = "/v1/chat/completions"
OPTIONS = StackOptions(
    prefill=(EngineConfig(role="prefill", prefill_tokens_per_s=2000),) * 2,
    decode=(EngineConfig(role="decode", itl_ms=20, kv_blocks=64),) * 2,
    environment={"AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "50"},
)


async def test_the_load_is_told_in_pods() -> None:
    async with run_checked_stack(OPTIONS) as stack, connect(stack) as client:
        before = await read_metrics(stack)
        # Nobody knows yet what a prompt takes.
        assert before.total("pdrouter_pods_wanted", role="prefill") == 0
        assert before.total("pdrouter_pod_prefill_tokens_per_second") == 0
        prompt = [{"role": "user", "content": "Why is the sky blue? " * 40}]
        body = chat(stream=True, max_tokens=60, messages=prompt)
        enough = asyncio.Event()

        async def keep_asking() -> None:
            while not enough.is_set():
                assert (await client.post(CHAT, json=body)).status_code == 200

        async def check_busy() -> None:
            metrics = await read_metrics(stack)
            assert metrics.total("pdrouter_pod_prefill_wait_seconds") > 0
            assert metrics.total("pdrouter_pod_kv_usage_ratio") > 0
            assert metrics.total("pdrouter_pod_decode_tokens_per_second") > 0
            assert metrics.total("pdrouter_pod_prefill_tokens_per_second") > 0
            for role in ("prefill", "decode"):
                assert metrics.total("pdrouter_pods_wanted", role=role) > 0

        async with asyncio.TaskGroup() as tasks:
            for _ in range(12):
                tasks.create_task(keep_asking())
            try:
                await eventually(check_busy)
            finally:
                enough.set()

        async def check_idle() -> None:
            metrics = await read_metrics(stack)
            assert metrics.total("pdrouter_pod_prefill_wait_seconds") == 0
            free = metrics.total("pdrouter_pod_kv_free_tokens")
            assert free == sum(engine.config.kv_blocks for engine in stack.decode) * 16

        await eventually(check_idle)
