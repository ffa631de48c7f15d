"""An installation with the real Envoy for each module of tests, and a client of it."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from expectations import DECODE, PREFILL, connect, expect_settled, run_checked_stack

from pdrouter.tools.local_stack import LocalStack, StackOptions


@pytest.fixture(scope="module")
def stack_options() -> StackOptions:
    """What `stack` consists of. A module that needs something else overrides this fixture."""
    return StackOptions(prefill=PREFILL, decode=DECODE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(stack_options: StackOptions) -> AsyncIterator[LocalStack]:
    """A running installation; at the end of the module nothing may be left in flight."""
    async with run_checked_stack(stack_options) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `stack`; at the end of the test nothing may be left in flight."""
    async with connect(stack) as connected:
        yield connected
    await expect_settled(stack)
