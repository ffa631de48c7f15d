"""What the router answers by itself, and what it says to those who ask in the wrong place."""

import json

import pytest
from exchanges import DECODE, PREFILL, Bench, error_of, request_body, request_headers
from factories import make_pod

from pdrouter import __version__
from pdrouter.cluster.pods import Pod, Role
from pdrouter.extproc.messages import ImmediateReply, Reply
from pdrouter.openai.models import unknown_model
from pdrouter.openai.paths import ENDPOINTS, find_right_path
from pdrouter.serving.record import Outcome

COMBINED = Pod.create(uid="b", name="b", ip="10.0.0.3", port=1, model="m", role=Role.BOTH)


def read(reply: Reply | None) -> tuple[int, dict[str, str]]:
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["content-type"] == "application/json"
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/health", "/ping", "/health?x=1"])
@pytest.mark.parametrize(
    ("pods", "status"),
    [((PREFILL, DECODE), 200), ((COMBINED,), 200), ((PREFILL,), 503), ((), 503)],
)
async def test_health_needs_a_pod_and_no_key(
    method: str, path: str, pods: tuple[Pod, ...], status: int
) -> None:
    bench = Bench(pods, bearer_token="key")
    (reply,) = await bench.tell(request_headers(path, method, end_of_stream=True))
    answered, body = read(reply)
    assert answered == status
    assert body["status"] == ("ok" if status == 200 else "unavailable")
    assert bench.close().outcome is Outcome.ANSWERED


async def test_the_version_is_told_to_those_who_have_the_key() -> None:
    bench = Bench(bearer_token="key")
    (reply,) = await bench.tell(request_headers("/version", "GET"))
    assert error_of(reply) == (401, "invalid_api_key")
    bench.exchange = bench.open()
    bench.notes.open = 1
    (reply,) = await bench.tell(request_headers("/version", "GET", x_api_key="key"))
    assert read(reply) == (200, {"version": __version__, "server": "pdrouter"})
    bench.close()


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models", "/v1/models/m"])
async def test_other_methods_are_told_the_right_ones(path: str) -> None:
    bench = Bench()
    (reply,) = await bench.tell(request_headers(path, "POST"))
    assert error_of(reply) == (405, "method_not_allowed")
    assert isinstance(reply, ImmediateReply)
    assert dict(reply.headers)["allow"] == "GET, HEAD"
    bench.close()


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/V1/Chat/Completions", "/v1/chat/completions"),
        ("/api/v1/completions", "/v1/completions"),
        ("/openai/deployments/gpt/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/chat_completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/messages", "/v1/messages"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/rerank/", "/rerank"),
        ("/v1/v2/rerank", "/v2/rerank"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/generate", "/generate"),
        ("/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/health", "/health"),
        ("/healthz", "/health"),
        ("/", None),
        ("", None),
        ("/favicon.ico", None),
        ("/metrics", None),
        ("/" + "x" * 10_000, None),
    ],
)
async def test_a_path_that_is_nearly_right_is_told_the_right_one(
    path: str, right: str | None
) -> None:
    assert find_right_path(path) == right
    bench = Bench()
    (reply,) = await bench.tell(request_headers(path))
    assert error_of(reply) == (404, "unknown_path")
    assert isinstance(reply, ImmediateReply)
    message = json.loads(reply.body)["error"]["message"]
    assert message.endswith("is not served" if right is None else f"did you mean {right!r}?")
    bench.close()


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_path_is_its_own_right_one(path: str) -> None:
    assert find_right_path(path) == path
    assert find_right_path(path + "/") == path


@pytest.mark.parametrize(
    ("served", "said"),
    [
        ([], "model 'x' does not exist; no model is served"),
        (["b", "a"], "model 'x' does not exist; served: 'a', 'b'"),
        (
            [f"m{number:02}" for number in range(12)],
            "model 'x' does not exist; served are "
            + ", ".join(f"'m{number:02}'" for number in range(10))
            + " and 2 more",
        ),
    ],
)
def test_an_unknown_model_is_told_the_served_ones(served: list[str], said: str) -> None:
    rejected = unknown_model("x", served)
    assert (rejected.status, rejected.code, rejected.param) == (404, "model_not_found", "model")
    assert rejected.message == said


def test_long_names_are_cut() -> None:
    assert len(unknown_model("x" * 10**6, ["y" * 10**6] * 100).message) < 3000


async def test_both_who_ask_for_a_model_and_who_ask_about_it_are_told() -> None:
    bench = Bench()
    (about,) = await bench.tell(request_headers("/v1/models/x", "GET"))
    bench.exchange = bench.open()
    bench.notes.open = 1
    _, request = await bench.tell(
        request_headers(), request_body({"model": "x", "messages": [{"role": "user"}]})
    )
    for reply in (about, request):
        assert error_of(reply) == (404, "model_not_found")
        assert isinstance(reply, ImmediateReply)
        assert b"served: 'm'" in reply.body
    bench.close()


async def test_a_model_that_cannot_be_served_is_not_listed_and_says_why() -> None:
    odd = make_pod("odd", model="odd", unsupported="engine 'tgi' is not supported")
    bench = Bench((PREFILL, DECODE, odd))
    (listed,) = await bench.tell(request_headers("/v1/models", "GET"))
    assert isinstance(listed, ImmediateReply)
    assert [each["id"] for each in json.loads(listed.body)["data"]] == ["m"]
    bench.close()
    bench.exchange = bench.open()
    (card,) = await bench.tell(request_headers("/v1/models/odd", "GET"))
    assert error_of(card) == (503, "model_unsupported")
    assert isinstance(card, ImmediateReply)
    assert b"engine 'tgi' is not supported" in card.body
    bench.close()
