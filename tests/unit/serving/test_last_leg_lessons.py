"""What is learnt of an answer, and how much of it Envoy is asked to show for that."""

from typing import Any

import pytest
from exchanges import CHAT, Bench, request_body, request_headers, response_headers

from pdrouter.extproc.messages import BodyMode, PhaseReply, ResponseBody
from pdrouter.settings.choices import Aggregation


async def answer(bench: Bench, *, stream: bool) -> BodyMode | None:
    """Let a request be answered; return the mode in which the body of the answer is asked for."""
    body = request_body({**CHAT, "stream": stream})
    *_, head = await bench.tell(request_headers(), body, response_headers())
    assert isinstance(head, PhaseReply)
    asked = None if head.mode_override is None else head.mode_override.response_body
    if asked is BodyMode.STREAMED:
        await bench.tell(ResponseBody(b"", False), ResponseBody(b"data: 1\n\n", False))
    return asked


@pytest.mark.parametrize(
    ("settings", "stream", "asked"),
    [
        ({"aggregation": Aggregation.WHEN_FASTER}, True, True),
        ({"aggregation": Aggregation.WHEN_FASTER}, False, False),
        ({"aggregation": Aggregation.WHEN_FASTER, "handover_s": 0.1}, True, False),
        ({"aggregation": Aggregation.FALLBACK}, True, False),
    ],
    ids=str,
)
async def test_the_first_token_is_asked_for_where_it_teaches_anything(
    settings: dict[str, Any], stream: bool, asked: bool
) -> None:
    bench = Bench(**settings)
    mode = await answer(bench, stream=stream)
    assert (mode is BodyMode.STREAMED) == asked
    assert bench.state.whole.count_answers("m") == asked
    bench.close()
