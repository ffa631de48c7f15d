"""The answers of `/v1/responses` that an engine keeps, and the paths to them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from pdrouter.openai.coercion import as_boolean
from pdrouter.tools.simulation.answers import event
from pdrouter.tools.simulation.prompts import Members
from pdrouter.tools.simulation.reception import EngineCall, api_handler
from pdrouter.tools.simulation.refusal import ContractViolated, Refused, malformed

Response = dict[str, Any]
_OPEN = ("queued", "in_progress")


class KeptResponses:
    """What one engine keeps, until it stops."""

    def __init__(self) -> None:
        self._responses: dict[str, Response] = {}
        self._inputs: dict[str, object] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def routes(self) -> list[web.RouteDef]:
        """Give the paths to what is kept; those of vLLM and of OpenAI."""
        path = "/v1/responses/{id}"
        return [
            web.get(path, api_handler(self._get, bodiless=True), allow_head=False),
            web.delete(path, api_handler(self._delete, bodiless=True)),
            web.post(f"{path}/cancel", api_handler(self._cancel, bodiless=True)),
            web.get(f"{path}/input_items", api_handler(self._list_inputs, bodiless=True)),
        ]

    def lose(self) -> None:
        """Forget everything, as an engine that stops does."""
        for task in self._running.values():
            task.cancel()
        for kept in (self._running, self._responses, self._inputs):
            kept.clear()

    def check(self, members: Members, response_id: str) -> None:
        """Hold a request to what is kept.

        Raises:
            Refused: It goes on with what is not, or cannot be kept itself.
            ContractViolated: Its answer would take the place of another one.
        """
        previous = members.get("previous_response_id")
        if previous is not None:
            self._find(str(previous))
        if members.get("background") and not is_stored(members):
            raise malformed("background can only be used when `store` is true", "background")
        if is_stored(members) and response_id in self._responses:
            message = f"there is a response {response_id} already"
            raise ContractViolated("response_id_reused", 400, message, param="request_id")

    def keep(self, members: Members, response: Response) -> None:
        """Keep an answer, unless it was cancelled meanwhile."""
        known = self._responses.get(response["id"])
        if is_stored(members) and (known is None or known["status"] != "cancelled"):
            self._responses[response["id"]] = response
            self._inputs[response["id"]] = members["input"]

    def begin(
        self, members: Members, queued: Response, run: Callable[[], Awaitable[object]]
    ) -> Response:
        """Have an answer made in the background, and give what there is of it now."""
        self.keep(members, queued)

        async def finish() -> None:
            await run()

        task = asyncio.get_running_loop().create_task(finish())
        self._running[queued["id"]] = task
        task.add_done_callback(lambda _: self._running.pop(queued["id"], None))
        return queued

    def _find(self, response_id: str) -> Response:
        response = self._responses.get(response_id)
        if response is None:
            message = f"Response with id '{response_id}' not found."
            raise Refused(404, message, param="response_id", error_type="invalid_request_error")
        return response

    async def _get(self, call: EngineCall) -> web.StreamResponse:
        response = self._find(call.http.match_info["id"])
        if not as_boolean(call.http.query.get("stream", "false")):
            return web.json_response(response)
        last = {"type": "response.completed", "sequence_number": 0, "response": response}
        return web.Response(
            body=event(last, "response.completed"), content_type="text/event-stream"
        )

    async def _delete(self, call: EngineCall) -> web.StreamResponse:
        response = self._find(call.http.match_info["id"])
        del self._responses[response["id"]], self._inputs[response["id"]]
        return web.json_response({"id": response["id"], "object": "response", "deleted": True})

    async def _cancel(self, call: EngineCall) -> web.StreamResponse:
        response = self._find(call.http.match_info["id"])
        if response["status"] not in _OPEN:
            raise Refused(400, "Cannot cancel a synchronous response.", param="response_id")
        response["status"] = "cancelled"
        if (task := self._running.get(response["id"])) is not None:
            task.cancel()
        return web.json_response(response)

    async def _list_inputs(self, call: EngineCall) -> web.StreamResponse:
        response = self._find(call.http.match_info["id"])
        given = self._inputs[response["id"]]
        data = given if isinstance(given, list) else [{"type": "message", "content": given}]
        return web.json_response({"object": "list", "data": data, "has_more": False})


def is_stored(members: Mapping[str, Any]) -> bool:
    """Say whether the answer to a request is kept: it is, unless the client says otherwise."""
    return as_boolean(members.get("store", True)) is not False
