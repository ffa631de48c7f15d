"""Who asks: by a key, or by the header that says so where that is trusted; and what engines get."""

from pathlib import Path
from typing import Any

import pytest
from exchanges import (
    CHAT,
    Bench,
    error_of,
    request_body,
    request_headers,
)
from rosters import keys_of

from pdrouter.extproc.messages import ImmediateReply, PhaseReply
from pdrouter.settings.choices import OnFailure, UserSource
from pdrouter.users.directory import DirectoryUnavailable
from pdrouter.users.keys import digest_key
from pdrouter.users.user import Limits, User

ANN = User("ann", models=("m",))


class KnownUsers:
    """Users of elsewhere; an exception in place of one is raised."""

    def __init__(self, **users: Any) -> None:
        self.users = users

    async def find(self, name: str) -> User | None:
        found = self.users.get(name)
        if isinstance(found, Exception):
            raise found
        assert found is None or isinstance(found, User)
        return found


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
    assert error_of(reply) == (400, "invalid_user")
    assert bench.close().user == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer ann"},
        {"authorization": "bearer  ann "},
        {"x-api-key": "ann"},
        {"api-key": "ann"},
        {"authorization": "Bearer unknown", "x-api-key": "ann"},
        {"authorization": "Bearer ann", "x-api-key": "unknown", "api-key": "other"},
        # Said twice, as Envoy joins it.
        {"authorization": "Bearer ann,Bearer ann"},
    ],
)
async def test_a_key_says_who_asks_in_whichever_header_it_comes(headers: dict[str, str]) -> None:
    # Whatever the user header claims.
    for source in UserSource:
        bench = Bench(around={"keys": keys_of(ANN)}, users=source)
        await bench.tell(request_headers(extra={**headers, "user": "bob"}), request_body(CHAT))
        assert bench.close().user == "ann"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "no API key was presented"),
        ({"authorization": "Basic ann"}, "no API key was presented"),
        ({"authorization": "Bearer eve"}, "Incorrect API key"),
        ({"x-api-key": digest_key("ann")}, "Incorrect API key"),
        ({"x-api-key": ""}, "no API key was presented"),
    ],
)
async def test_without_a_key_that_is_known_nobody_gets_in(
    headers: dict[str, str], told: str
) -> None:
    bench = Bench(around={"keys": keys_of(ANN)})
    [reply] = await bench.tell(request_headers(extra=headers))
    assert error_of(reply) == (401, "invalid_api_key")
    assert isinstance(reply, ImmediateReply)
    assert told in reply.body.decode()
    assert "eve" not in reply.body.decode()
    bench.close()


async def test_a_file_without_keys_lets_nobody_in() -> None:
    bench = Bench(around={"keys": keys_of()})
    [reply] = await bench.tell(request_headers(authorization="Bearer ann"))
    assert error_of(reply) == (401, "invalid_api_key")
    bench.close()


async def test_the_shared_key_goes_on_beside_those_of_users() -> None:
    for key, name in (("shared", ""), ("ann", "ann")):
        bench = Bench(around={"keys": keys_of(ANN)}, bearer_token="shared")
        await bench.tell(request_headers(authorization=f"Bearer {key}"), request_body(CHAT))
        record = bench.close()
        assert (record.user, record.forwarded) == (name, True)
    bench = Bench(around={"keys": keys_of(ANN)}, bearer_token="shared")
    [reply] = await bench.tell(request_headers(authorization="Bearer other"))
    assert error_of(reply) == (401, "invalid_api_key")
    bench.close()


@pytest.mark.parametrize(
    ("found", "on_failure", "answer"),
    [
        (User("bob", limits=Limits(5)), OnFailure.CLOSED, None),
        (None, OnFailure.OPEN, (401, "unknown_user")),
        (DirectoryUnavailable("away"), OnFailure.OPEN, None),
        (DirectoryUnavailable("away"), OnFailure.CLOSED, (503, "limits_unavailable")),
    ],
)
async def test_users_whom_a_header_names_are_looked_up(
    found: User | Exception | None, on_failure: OnFailure, answer: tuple[int, str] | None
) -> None:
    bench = Bench(
        around={"directory": KnownUsers(bob=found)},
        users=UserSource.AIBRIX,
        limits_on_failure=on_failure,
    )
    replies = await bench.tell(request_headers(user="bob"), request_body(CHAT))
    assert bench.exchanges.gate.failures["find"] == isinstance(found, Exception)
    if answer is None:
        assert bench.close().user == "bob"
    else:
        assert error_of(replies[0]) == answer
        bench.close()


async def test_requests_without_a_user_header_are_nobodys() -> None:
    bench = Bench(around={"directory": KnownUsers()}, users=UserSource.AIBRIX)
    await bench.tell(request_headers(), request_body(CHAT))
    record = bench.close()
    assert (record.user, record.forwarded) == ("", True)


async def test_a_model_that_is_not_allowed_is_refused_whether_it_exists_or_not() -> None:
    for model in ("m2", "nowhere"):
        bench = Bench(around={"keys": keys_of(User("ann", models=("m",)))})
        body = {**CHAT, "model": model}
        _, reply = await bench.tell(request_headers(authorization="Bearer ann"), request_body(body))
        assert error_of(reply) == (403, "model_not_allowed")
        bench.close()


async def test_an_allowed_model_that_does_not_exist_tells_nothing_of_others() -> None:
    bench = Bench(around={"keys": keys_of(User("ann", models=("mine",)))})
    body = {**CHAT, "model": "mine"}
    _, reply = await bench.tell(request_headers(authorization="Bearer ann"), request_body(body))
    assert error_of(reply) == (404, "model_not_found")
    assert isinstance(reply, ImmediateReply)
    assert b"'m'" not in reply.body
    assert b"no model is served" in reply.body
    bench.close()


@pytest.mark.parametrize(("models", "listed"), [(None, True), (("m",), True), (("x*",), False)])
async def test_the_list_of_models_has_what_a_user_may_use(
    models: tuple[str, ...] | None, listed: bool
) -> None:
    keys = {"keys": keys_of(User("ann", models=models))}
    for path in ("/v1/models", "/v1/models/m"):
        bench = Bench(around=keys)
        [reply] = await bench.tell(
            request_headers(path, "GET", authorization="Bearer ann", end_of_stream=True)
        )
        assert isinstance(reply, ImmediateReply)
        assert (b'"id":"m"' in reply.body) is listed
        bench.close()


def answer_of(reply: object) -> PhaseReply:
    assert isinstance(reply, PhaseReply)
    return reply


@pytest.mark.parametrize(
    ("settings", "key", "last", "side"),
    [
        # A user's own key is no engine's business; another one may be the engine's.
        ({}, "ann", (), None),
        ({"forward_keys": True}, "ann", None, "Bearer ann"),
        ({"bearer_token": "shared"}, "shared", None, "Bearer shared"),
    ],
)
async def test_engines_get_keys_that_are_no_users(
    settings: dict[str, Any], key: str, last: tuple[()] | None, side: str | None
) -> None:
    bench = Bench(around={"keys": keys_of(ANN)}, **settings)
    head, _ = await bench.tell(
        request_headers(authorization=f"Bearer {key}", x_api_key=key), request_body(CHAT)
    )
    removed = {"authorization", "x-api-key"} & set(answer_of(head).remove_headers)
    assert removed == (set() if last is None else {"authorization", "x-api-key"})
    assert bench.prefill.posts[0].headers.get("authorization") == side
    bench.close()


async def test_engines_get_their_own_key_in_place_of_any_clients(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("engines-own\n")
    bench = Bench(engine_key_file=tmp_path / "key")
    head, _ = await bench.tell(
        request_headers(authorization="Bearer client", x_api_key="client"), request_body(CHAT)
    )
    reply = answer_of(head)
    assert {"authorization", "x-api-key"} <= set(reply.remove_headers)
    assert reply.set_headers == (("authorization", "Bearer engines-own"),)
    headers = bench.prefill.posts[0].headers
    assert headers["authorization"] == "Bearer engines-own"
    assert "x-api-key" not in headers
    bench.close()
