"""The prefill engine's side of a KV transfer: the handle in the answer of a prefill leg."""

import secrets
import time
from dataclasses import replace
from itertools import count
from typing import Any

from pdrouter.tools.simulation.answers import AnswerForm
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.context_handoff import Context, announce
from pdrouter.tools.simulation.faults import Fault
from pdrouter.tools.simulation.generation import Generation
from pdrouter.tools.simulation.kv_handles import HandleStore
from pdrouter.tools.simulation.node_address import join_address
from pdrouter.tools.simulation.token_ids import token_ids_of
from pdrouter.tools.simulation.transfers import TransferStore

_FIRST_COOKIE = 2**53 + 1


class HandleIssuer:
    """Holds the blocks of finished prefill legs and describes them in the answer."""

    def __init__(
        self,
        config: EngineConfig,
        store: HandleStore,
        transfers: TransferStore,
        remote_host: str,
        remote_port: int,
    ) -> None:
        """Issue handles into a store.

        Args:
            config: The engine's settings.
            store: Where issued handles are held.
            transfers: Where blocks are held that have no handle.
            remote_host: The host that handles name.
            remote_port: The port at which the engine answers fetches.
        """
        self._config = config
        self._store = store
        self._transfers = transfers
        self._remote_host = remote_host
        self._remote_port = remote_port
        self._next_block = 0
        self._cookies = count(_FIRST_COOKIE, 2)

    def issue(self, form: AnswerForm, generation: Generation, fault: Fault) -> object:
        """Give the answer of a prefill leg, and hold its blocks."""
        if self._config.kv_connector == "neuron-legacy":
            return self._neuron_answer(form, generation)
        return self._nixl_answer(form, generation, fault)

    def announce(self, form: AnswerForm, generation: Generation, transfer_id: str) -> object:
        """Give the answer of a prefill leg whose blocks are asked for by an id, and hold them."""
        request = generation.request
        shown = self._nixl_handle(generation)
        self._transfers.finish(
            transfer_id,
            request.digest,
            request.prompt_tokens,
            time.monotonic(),
            str(shown.get("remote_request_id", "")),
        )
        if self._config.kv_connector in ("mooncake", "offloading"):
            return form.plain(generation)
        del shown["remote_block_ids"]
        shown |= {"transfer_mode": "push", "transfer_id": transfer_id}
        return form.plain(replace(generation, kv_transfer_params=shown))

    def hand_context(self, form: AnswerForm, generation: Generation, context: Context) -> object:
        """Give the answer of a context leg, and hold its blocks if they have not been sent.

        Those of an answer that the first token has completed are nobody's any more.
        """
        request = generation.request
        answer: dict[str, Any] = dict(form.plain(generation))
        if not context.waits and generation.finish_reason == "length":
            self._transfers.finish(
                str(context.request_id), request.digest, request.prompt_tokens, time.monotonic()
            )
        address = join_address(self._remote_host, self._remote_port)
        params = announce(request, context, self._config, address, generation.token_ids[0])
        answer["choices"][0]["disaggregated_params"] = params
        return {**answer, "prompt_token_ids": token_ids_of(request)}

    def _nixl_answer(self, form: AnswerForm, generation: Generation, fault: Fault) -> object:
        if fault.null_params:
            return form.plain(generation)
        handle = self._nixl_handle(generation)
        if handle["remote_block_ids"]:
            self._hold(handle, generation)
        if fault.empty_blocks:
            handle["remote_block_ids"] = []
        shown = {name: value for name, value in handle.items() if name not in fault.omit_params}
        return form.plain(replace(generation, kv_transfer_params=shown))

    def _nixl_handle(self, generation: Generation) -> dict[str, object]:
        """Describe blocks as vLLM 0.33 does.

        `remote_xfer_cookie` is ours: an odd integer above 2**53, which no float can hold, so that
        a router that parses numbers as floats is found out.
        """
        tokens = generation.request.prompt_tokens
        handle: dict[str, object] = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": self._allocate(tokens),
            "remote_engine_id": self._config.engine_id,
            "remote_host": self._remote_host,
            "remote_port": self._remote_port,
            "tp_size": 1,
            "remote_xfer_cookie": next(self._cookies),
        }
        if self._config.release == "old":
            return handle
        return handle | {
            "remote_request_id": f"{generation.request_id}-{secrets.token_hex(4)}",
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": tokens,
            "remote_blocks_expiry_time": None,
            "remote_registration_generation": 0,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": 0,
        }

    def _allocate(self, tokens: int) -> list[list[int]]:
        """Give one group of block ids, never given before; old engines skip a partial block."""
        blocks = -(-tokens // self._config.block_size)
        if self._config.release == "old":
            blocks = tokens // self._config.block_size
        first = self._next_block
        self._next_block += blocks
        return [list(range(first, first + blocks))] if blocks else []

    def _neuron_answer(self, form: AnswerForm, generation: Generation) -> object:
        """Give an ordinary answer whose id says where its blocks are."""
        answer = form.plain(generation)
        address = f"{self._remote_host}:{self._remote_port}"
        answer["id"] = f"{answer.get('id', generation.request_id)}@{address}"
        self._hold(answer, generation)
        return answer

    def _hold(self, handle: dict[str, object], generation: Generation) -> None:
        request = generation.request
        self._store.issue(dict(handle), request.digest, request.prompt_tokens, time.monotonic())
