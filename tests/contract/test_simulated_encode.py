"""Simulated engines that encode media, and those that have media encoded elsewhere."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from waiting import wait_until

from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.legs import SimulatedLeg

GENEROUS_S = 20.0
CHAT = "/v1/chat/completions"
CAT: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,Y2F0"}}
DOG: dict[str, Any] = {"type": "image_url", "image_url": {"url": "https://example.com/dog.png"}}
SONG: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": "bGE=", "format": "wav"}}
FILM: dict[str, Any] = {"type": "video_url", "video_url": {"url": "https://example.com/film.mp4"}}
NULLS = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
PREFILL_LEG: dict[str, Any] = {
    "max_tokens": 1,
    "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, **NULLS},
}
EMBEDS = {
    "image_url": "image_embeds",
    "audio_url": "audio_embeds",
    "input_audio": "audio_embeds",
    "video_url": "video_embeds",
}


def name(part: dict[str, Any]) -> dict[str, Any]:
    """Give a part the `uuid` that a router makes of its content."""
    return {**part, "uuid": hashlib.sha256(json.dumps(part).encode()).hexdigest()}


def chat(*parts: dict[str, Any], text: str | None = "What is this?", **members: Any) -> Any:
    content = [*parts, *([] if text is None else [{"type": "text", "text": text}])]
    return {"messages": [{"role": "user", "content": content}], **members}


def stand_in(part: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    kind = EMBEDS[part["type"]]
    return {"type": kind, kind: described["metadata"], "uuid": name(part)["uuid"]}


class Three:
    """An engine for each role."""

    def __init__(
        self,
        encode: SimulatedEngine,
        prefill: SimulatedEngine,
        decode: SimulatedEngine,
        client: aiohttp.ClientSession,
    ) -> None:
        self.encode = encode
        self.prefill = prefill
        self.decode = decode
        self.client = client

    async def ask(
        self, engine: SimulatedEngine, body: Any, path: str = CHAT, **headers: str
    ) -> tuple[int, Any]:
        url = f"http://{engine.address}{path}"
        async with self.client.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def encode_leg(self, *parts: dict[str, Any], **members: Any) -> dict[str, Any]:
        body = chat(*(name(part) for part in parts), text=None, stream=False, **members)
        status, answer = await self.ask(self.encode, body)
        assert status == 200, answer
        said: dict[str, Any] = answer["ec_transfer_params"]
        return said

    def count(self, metric: str) -> float:
        return sum(engine.count(metric) for engine in (self.encode, self.prefill, self.decode))

    @property
    def violations(self) -> float:
        return self.count("simulation:contract_violations_total")

    @property
    def outstanding(self) -> float:
        return self.count("simulation:encodings_outstanding")

    def media(self, engine: SimulatedEngine) -> float:
        return engine.count("simulation:media_items_total")


@asynccontextmanager
async def running(*faults: Fault, **settings: Any) -> AsyncIterator[Three]:
    options: dict[str, Any] = {"prefill_tokens_per_s": 0, "itl_ms": 1, "mm_embeds": True}
    encode = SimulatedEngine(
        EngineConfig(role="encode", host="127.0.0.4", **options | settings), *faults
    )
    prefill = SimulatedEngine(
        EngineConfig(role="prefill", host="127.0.0.2", ec_connector=True, **options)
    )
    decode = SimulatedEngine(EngineConfig(role="decode", host="127.0.0.3", **options))
    timeout = aiohttp.ClientTimeout(total=GENEROUS_S)
    async with encode, prefill, decode, aiohttp.ClientSession(timeout=timeout) as client:
        yield Three(encode, prefill, decode, client)


@pytest.mark.parametrize("part", [CAT, DOG, SONG, FILM])
async def test_a_medium_goes_from_encode_over_prefill_to_decode(part: dict[str, Any]) -> None:
    async with running() as three:
        said = await three.encode_leg(part)
        (key,) = said
        assert key == name(part)["uuid"]
        assert said[key]["item_indices"] == [0]
        assert three.outstanding == 1
        body = chat(stand_in(part, said[key]))
        status, answer = await three.ask(
            three.prefill, {**body, **PREFILL_LEG, "ec_transfer_params": said}
        )
        assert (status, three.outstanding) == (200, 0), answer
        last = {**body, "kv_transfer_params": answer["kv_transfer_params"]}
        assert (await three.ask(three.decode, last))[0] == 200
        assert three.violations == 0
        assert three.count("simulation:prompt_mismatches_total") == 0
        assert (three.media(three.encode), three.media(three.prefill)) == (1, 1)


async def test_several_images_may_share_a_request() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT, DOG, CAT)
        assert [said[name(part)["uuid"]]["item_indices"] for part in (CAT, DOG)] == [[0, 2], [1]]
        assert three.outstanding == 2


async def test_options_of_the_processor_change_the_key() -> None:
    options = {"mm_processor_kwargs": {"max_pixels": 4}}
    async with running() as three:
        said = await three.encode_leg(CAT, **options)
        (key,) = said
        assert key != name(CAT)["uuid"]
        body = chat(stand_in(CAT, said[key]), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, {**body, **options}))[0] == 200
        assert (await three.ask(three.prefill, body))[0] == 400
        assert three.violations == 1


@pytest.mark.parametrize(
    "body",
    [
        chat(name(CAT)),
        chat(CAT, text=None),
        chat(text=None),
        chat(name(CAT), text=None, stream=True),
        chat(name(CAT), text=None, max_tokens=2),
        chat(name(CAT), text=None, max_completion_tokens=16),
        chat(name(CAT), text=None, kv_transfer_params={"do_remote_decode": True}),
        chat(name(CAT), text=None, ec_transfer_params={"consumer_zmq": "tcp://127.0.0.1:1"}),
        {"messages": [{"role": "system", "content": [name(CAT)]}]},
        {"messages": [{"role": "user", "content": "What is this?"}]},
        {"messages": [{"role": "user", "content": [name(CAT)]}] * 2},
        {"messages": "none"},
    ],
)
async def test_an_encoder_is_asked_for_media_and_nothing_else(body: Any) -> None:
    async with running() as three:
        status, answer = await three.ask(three.encode, body)
        assert (status, three.violations, three.outstanding) == (400, 1, 0), answer


async def test_an_encoder_answers_no_other_path() -> None:
    async with running() as three:
        assert (await three.ask(three.encode, {"prompt": "Hi"}, "/v1/completions"))[0] == 400
        assert three.violations == 1


async def test_a_uuid_is_of_one_content() -> None:
    async with running() as three:
        await three.encode_leg(CAT)
        other = {**DOG, "uuid": name(CAT)["uuid"]}
        assert (await three.ask(three.encode, chat(other, text=None)))[0] == 400
        assert three.violations == 1


async def test_an_id_is_that_of_one_request_at_a_time() -> None:
    async with running(prefill_tokens_per_s=1) as three:
        body, headers = chat(name(CAT), text=None), {"x-request-id": "same"}
        first = asyncio.create_task(three.ask(three.encode, body, **headers))
        await wait_until(lambda: three.encode.count("simulation:media_encoding") == 1)
        assert (await three.ask(three.encode, body, **headers))[0] == 400
        assert three.encode.count("simulation:duplicate_request_ids_total") == 1
        first.cancel()
        await wait_until(lambda: three.encode.count("simulation:media_encoding") == 0)


async def test_media_in_flight_are_counted() -> None:
    async with running(prefill_tokens_per_s=1) as three:
        legs = [asyncio.create_task(three.encode_leg(part)) for part in (CAT, DOG, SONG)]
        await wait_until(lambda: three.encode.count("simulation:media_encoding") == 3)
        for leg in legs:
            leg.cancel()
        await wait_until(lambda: three.encode.count("simulation:media_encoding") == 0)
        assert three.encode.count("simulation:most_media_encoding") == 3
        assert three.outstanding == 0


async def test_a_handle_is_used_once() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        body = chat(stand_in(CAT, described), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, body))[0] == 200
        assert (await three.ask(three.prefill, body))[0] == 500
        assert three.violations == 1


@pytest.mark.parametrize(
    "change",
    [
        {"ec_cookie": 9007199254740992},
        {"size_bytes": 1},
        {"item_indices": [1]},
        {"peer_port": None},
        {"peer_host": None},
    ],
)
async def test_a_handle_is_given_back_unchanged(change: dict[str, Any]) -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        ((key, described),) = said.items()
        body = chat(stand_in(CAT, described), **PREFILL_LEG)
        body["ec_transfer_params"] = {key: {**described, **change}}
        assert (await three.ask(three.prefill, body))[0] == 500
        assert three.violations == 1


async def test_what_stands_for_a_medium_goes_with_what_is_said_of_it() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        cat = stand_in(CAT, described)
        useless = {**said, "0" * 64: described}
        larger = {"metadata": {"image_grid_thw": [1, 99, 99]}}
        for parts, params, status in (
            ([cat], None, 500),
            ([cat], useless, 400),
            ([], said, 400),
            ([stand_in(CAT, larger)], said, 500),
        ):
            body = chat(*parts, ec_transfer_params=params, **PREFILL_LEG)
            assert (await three.ask(three.prefill, body))[0] == status, params
        assert (three.violations, three.outstanding) == (4, 1)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_embeds", "image_embeds": {"image_grid_thw": [1, 2, 3]}},
        {"type": "image_embeds", "image_embeds": {}, "uuid": "x"},
        {"type": "image_embeds", "image_embeds": {"image_grid_thw": [[1, 2, 3]]}, "uuid": "x"},
        {"type": "image_embeds", "uuid": "x"},
    ],
)
async def test_what_stands_for_a_medium_has_a_name_and_a_flat_size(part: dict[str, Any]) -> None:
    async with running() as three:
        assert (await three.ask(three.decode, chat(part)))[0] == 400


async def test_an_engine_that_takes_no_embeddings_says_so() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        config = EngineConfig(role="prefill", host="127.0.0.5", prefill_tokens_per_s=0)
        async with SimulatedEngine(config) as plain:
            body = chat(stand_in(CAT, described), ec_transfer_params=said, **PREFILL_LEG)
            status, answer = await three.ask(plain, body)
            assert status == 400
            assert "--enable-mm-embeds" in answer["error"]["message"]
            raw = chat(name(CAT), ec_transfer_params=said, **PREFILL_LEG)
            assert (await three.ask(plain, raw))[0] == 400
            assert plain.count("simulation:contract_violations_total") == 1


async def test_a_decode_leg_brings_no_handles_of_encoders() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        body = chat(stand_in(CAT, described))
        _, answer = await three.ask(
            three.prefill, {**body, **PREFILL_LEG, "ec_transfer_params": said}
        )
        handle = answer["kv_transfer_params"]
        last = {**body, "kv_transfer_params": handle, "ec_transfer_params": said}
        assert (await three.ask(three.decode, last))[0] == 400
        assert three.violations == 1


async def test_raw_media_are_encoded_where_they_come_to() -> None:
    async with running() as three:
        assert (await three.ask(three.prefill, chat(CAT, DOG, CAT, **PREFILL_LEG)))[0] == 200
        assert three.media(three.prefill) == 2
        assert three.media(three.encode) == 0


async def test_raw_media_may_go_with_what_an_encoder_has_said() -> None:
    async with running() as three:
        said = await three.encode_leg(CAT)
        body = chat(name(CAT), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, body))[0] == 200
        assert (three.outstanding, three.violations) == (0, 0)


@pytest.mark.parametrize("ending", ["expired", "stopped", "restarted"])
async def test_what_is_gone_is_encoded_again_if_the_medium_is_there(ending: str) -> None:
    async with running(kv_lease_s=0.05 if ending == "expired" else 30.0) as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        if ending != "expired":
            await three.encode.stop()
        if ending == "restarted":
            await three.encode.start()
        await wait_until(lambda: three.outstanding == 0)
        encoded = chat(stand_in(CAT, described), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, encoded))[0] == 500
        raw = chat(name(CAT), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, raw))[0] == 200
        assert three.violations == 0


async def test_numbers_arrive_as_they_were_said() -> None:
    async with running() as three:
        said = await three.encode_leg(FILM)
        (described,) = said.values()
        assert described["metadata"]["timestamps"][:1] == [0.0]
        part = stand_in(FILM, described)
        part["video_embeds"] = part["video_embeds"] | {"timestamps": [0]}
        body = chat(part, ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, body))[0] == 500
        assert three.violations == 1


async def test_an_encoder_may_say_that_it_has_nothing() -> None:
    async with running(Fault(null_params=True)) as three:
        said = await three.encode_leg(CAT)
        known = {"modality": "image", "item_indices": [0], "metadata": {}}
        assert said == {name(CAT)["uuid"]: known}
        raw = chat(name(CAT), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, raw))[0] == 200
        assert (three.violations, three.outstanding) == (0, 0)


async def test_an_encoder_may_know_where_an_item_is_and_not_its_size() -> None:
    async with running(Fault(omit_params=("metadata",))) as three:
        said = await three.encode_leg(CAT)
        raw = chat(name(CAT), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, raw))[0] == 200
        assert (three.violations, three.outstanding) == (0, 0)


async def test_engines_of_another_version_do_not_understand_each_other() -> None:
    async with running(revision="2") as three:
        said = await three.encode_leg(CAT)
        (described,) = said.values()
        body = chat(stand_in(CAT, described), ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, body))[0] == 500
        assert three.violations == 1


async def test_the_host_in_a_handle_is_as_useful_as_that_of_real_engines() -> None:
    async with running(side_channel_host="localhost") as three:
        said = await three.encode_leg(CAT)
        ((key, described),) = said.items()
        assert described["peer_host"] == "localhost"
        part = stand_in(CAT, described)
        lost = chat(part, ec_transfer_params=said, **PREFILL_LEG)
        assert (await three.ask(three.prefill, lost))[0] == 500
        found = {key: {**described, "peer_host": three.encode.host}}
        body = chat(part, ec_transfer_params=found, **PREFILL_LEG)
        assert (await three.ask(three.prefill, body))[0] == 200
        assert three.violations == 0


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(status=400, leg=SimulatedLeg.ENCODE)])
async def test_an_encoder_fails_on_demand(fault: Fault) -> None:
    async with running(fault) as three:
        status, _ = await three.ask(three.encode, chat(name(CAT), text=None))
        assert (status, three.outstanding) == (fault.status, 0)
