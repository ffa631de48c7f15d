"""What clients may say of media where pods encode for the others: what engines receive of it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from encode_stage import ENCODERS, Stage, chat, picture
from exchanges import DECODE, PREFILL, error_of, request_body, request_headers
from factories import make_request

from pdrouter.cluster.view import ClusterView, ModelPods
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.leg_bodies import whole_body
from pdrouter.extproc.messages import ImmediateReply, PhaseReply
from pdrouter.openai.paths import ENDPOINTS, Forms
from pdrouter.settings.choices import FailurePolicy

FILE = {"type": "file", "file": {"file_id": "f"}}
UNREADY = [replace(pod, ready=False) for pod in ENCODERS]


async def find_router_s_name(part: dict[str, Any]) -> str:
    """What the router calls a medium, as anybody can work out who has it."""
    stage = Stage()
    await stage.serve(part)
    await stage.end()
    ((_, _, sent),) = stage.encoded
    name: str = sent["messages"][0]["content"][0]["uuid"]
    return name


@pytest.mark.parametrize(
    ("more", "members", "encoders"),
    [
        ([], {"n": 2}, ENCODERS),
        ([FILE], {}, ENCODERS),
        ([{"type": "image_url", "image_url": None, "uuid": "sent-before"}], {}, ENCODERS),
        ([{"type": "text", "text": "a"}] * 3000, {}, ENCODERS),
        ([], {}, UNREADY),
    ],
    ids=["n", "file", "by-name-alone", "many-parts", "not-ready"],
)
@pytest.mark.parametrize("each_leg_may", [False, True])
async def test_no_client_can_give_its_medium_the_name_of_another_s(
    more: list[Any], members: dict[str, Any], encoders: list[Any], each_leg_may: bool
) -> None:
    stolen = await find_router_s_name(picture(1))
    stage = Stage(*encoders, PREFILL, DECODE, split_multimodal=each_leg_may)
    body = await stage.serve(*more, {**picture(666), "uuid": stolen}, **members)
    assert not stage.encoded
    for sent in (*stage.prefilled, body):
        part = sent["messages"][0]["content"][-1]
        assert part == {**picture(666), "uuid": f"client:{stolen}"}
        assert [each for each in sent["messages"][0]["content"][:-1] if each not in more] == [
            {**each, "uuid": f"client:{each['uuid']}"} for each in more if "uuid" in each
        ]
    await stage.end()


async def test_no_name_can_be_taken_by_way_of_an_adapter() -> None:
    """It is loaded by those that compute, so that nobody encodes for it."""
    stage = Stage()
    view = stage.bench.cache.view
    adapter = ModelPods.group("sql", (PREFILL, DECODE))
    models = {**view.models, "sql": adapter}
    stage.bench.cache.publish(ClusterView.of(models, view.pods, models), synced=True)
    body = await stage.serve({**picture(1), "uuid": "stolen"}, model="sql")
    assert (stage.encoded, stage.prefilled) == ([], [])
    assert body["messages"] == chat({**picture(1), "uuid": "client:stolen"})["messages"]
    await stage.end()


async def test_without_pods_that_encode_names_stay_as_the_client_wrote_them() -> None:
    stage = Stage(PREFILL, DECODE)
    named = {**picture(1), "uuid": "mine"}
    assert await stage.serve(named) == chat(named)
    await stage.end()


@pytest.mark.parametrize(
    "answer", [FailureKind.TRANSPORT, EngineAnswer(200, {}, b'{"kv_transfer_params": null}')]
)
async def test_a_client_s_name_is_kept_apart_where_its_medium_is_served_whole_after_all(
    answer: Any,
) -> None:
    stage = Stage(on_prefill_failure=FailurePolicy.AGGREGATE)
    stage.prefill = lambda *_: answer
    body = await stage.serve({**picture(1), "uuid": "mine"})
    assert body == chat({**picture(1), "uuid": "client:mine"})
    await stage.end()


@pytest.mark.parametrize("kind", ["image_embeds", "audio_embeds", "video_embeds"])
async def test_a_client_s_placeholders_meet_nothing_that_was_encoded_for_another(kind: str) -> None:
    stolen = await find_router_s_name(picture(1))
    stage = Stage()
    mine = {"type": kind, kind: {"grid": [1]}, "uuid": stolen}
    handles = {stolen: {"peer_host": "10.9.9.9"}}
    body = await stage.serve(mine, picture(1), ec_transfer_params=handles)
    assert (stage.encoded, stage.prefilled) == ([], [])
    assert body == chat({**mine, "uuid": f"client:{stolen}"}, picture(1))
    await stage.end()


_HIDDEN = b'"ec_transfer_p\\u0061rams": {"h": {"peer_host": "STOLEN"}}'


@pytest.mark.parametrize("path", sorted(p for p, e in ENDPOINTS.items() if e.forms is Forms.NEVER))
def test_a_client_s_handles_reach_no_engine_on_any_path(path: str) -> None:
    endpoint = ENDPOINTS[path]
    body = {name: [1] if name != "text" else "a" for name in endpoint.prompts[:1]}
    inner = b'{"extra_args": {%s, "a": 1}}' % _HIDDEN if endpoint.sampling else b"{}"
    data = (
        b'{%s, "vllm_xargs": {%s, "b": 2}, "sampling_params": %s, "model": "m", "max_tokens": 1'
        % (
            _HIDDEN,
            _HIDDEN,
            inner,
        )
    )
    data += b"".join(b', "%s": %s' % (n.encode(), json.dumps(v).encode()) for n, v in body.items())
    sent = bytes(whole_body(make_request(path, data + b"}")))
    assert b"STOLEN" not in sent
    assert json.loads(sent)["vllm_xargs"] == {"b": 2}


@pytest.mark.parametrize(
    "hidden",
    [
        {"ec_transfer_params": {"STOLEN": {}}},
        {"vllm_xargs": {"ec_transfer_params": {"STOLEN": {}}}},
    ],
)
@pytest.mark.parametrize("media", [True, False])
async def test_a_client_s_handles_reach_no_leg(hidden: dict[str, Any], media: bool) -> None:
    stage = Stage()
    part = picture(1) if media else {"type": "text", "text": "a"}
    body = await stage.serve(part, **hidden)
    legs = [*(sent for _, _, sent in stage.encoded), *stage.prefilled, body]
    assert len(legs) == 2 + media
    assert all("STOLEN" not in json.dumps(leg) for leg in legs)
    await stage.end()


async def test_handles_that_are_there_twice_are_refused() -> None:
    stage = Stage()
    once = json.dumps({**chat(picture(1)), "ec_transfer_params": 1}).encode()
    twice = once[:-1] + b', "ec_transfer_p\\u0061rams": {}}'
    (_, reply) = await stage.bench.tell(request_headers(), request_body(twice))
    assert error_of(reply) == (400, "invalid_value")
    stage.bench.close()


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        (b'"https://media.example/\xff.png"', True),
        (b'"https://media.example/\\ud83d.png"', True),
        (b'{"url": "u", "x": %s}' % (b"[" * 100_000 + b"]" * 100_000), True),
        (b'{"url": "u", "x": %s}' % (b"[" * 700 + b"]" * 700), False),
        (b'{"url": "u", "x": %s}' % (b"[" * 850 + b"]" * 850), None),
    ],
    ids=["utf-8", "half-a-pair", "too-deep", "deep", "at-the-edge"],
)
async def test_what_can_hardly_be_read_is_refused_or_served(
    url: bytes, refused: bool | None
) -> None:
    stage = Stage()
    part = b'{"type": "image_url", "uuid": "a", "image_url": %s}' % url
    body = json.dumps(chat()).encode().replace(b"[]", b"[%s]" % part)
    (_, reply) = await stage.bench.tell(request_headers(), request_body(body))
    if refused is None:
        refused = isinstance(reply, ImmediateReply)
    if refused:
        assert error_of(reply)[0] == 400
    else:
        assert isinstance(reply, PhaseReply)
    stage.bench.close()
