"""Who asks: by a key, or by the header that says so where that is trusted."""

import pytest
from exchanges import CHAT, Bench, request_body, request_headers

from pdrouter.extproc.messages import ImmediateReply
from pdrouter.settings.choices import UserSource


@pytest.mark.parametrize(("source", "name"), [(UserSource.KEYS, ""), (UserSource.HEADER, "ann")])
async def test_who_asks_is_whom_a_header_names_only_where_that_is_trusted(
    source: UserSource, name: str
) -> None:
    bench = Bench(users=source)
    await bench.tell(request_headers(user=" ann "), request_body(CHAT))
    chosen = bench.exchange.call.chosen
    assert chosen is not None
    assert chosen.routed.facts.user == name
    assert bench.close().user == name


async def test_a_name_that_cannot_be_a_users_is_refused() -> None:
    bench = Bench(users=UserSource.HEADER)
    [reply] = await bench.tell(request_headers(user="x" * 129))
    assert isinstance(reply, ImmediateReply)
    assert reply.status == 400
    assert b"invalid_user" in reply.body
    assert bench.close().user == ""
