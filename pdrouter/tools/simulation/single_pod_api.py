"""The APIs that need no token loop: embeddings, ranking, classification, tokens."""

import base64
import hashlib
import struct
import time
import uuid
from collections.abc import Callable, Mapping

from aiohttp import web

from pdrouter.tools.simulation.api_requests import check_model
from pdrouter.tools.simulation.compute import Compute
from pdrouter.tools.simulation.config import EngineConfig
from pdrouter.tools.simulation.prompts import Members, is_token_list, text_tokens
from pdrouter.tools.simulation.reception import EngineCall
from pdrouter.tools.simulation.refusal import malformed

_DIMENSIONS = 8

Answer = dict[str, object]


class SinglePodApi:
    """Serves the APIs that one engine answers alone."""

    def __init__(self, config: EngineConfig, compute: Compute) -> None:
        self._config = config
        self._compute = compute

    async def serve(self, call: EngineCall) -> web.StreamResponse:
        """Answer one request.

        Raises:
            Refused: A member is missing or the model is not served.
        """
        answer = ANSWERS[call.http.path](call.members, self._config)
        async with self._compute.prefilled(text_tokens(list(call.members.values()))):
            model = check_model(call.members, self._config)
            return web.json_response({"model": model, **answer})


def _needed(members: Members, name: str) -> object:
    value = members.get(name)
    if value is None or value in ("", []):
        raise malformed("Field required", name)
    return value


def _inputs(members: Members, name: str = "input") -> list[object]:
    value = _needed(members, name)
    return value if isinstance(value, list) and not is_token_list(value) else [value]


def _tokens_of(value: object) -> int:
    return len(value) if isinstance(value, list) and is_token_list(value) else text_tokens(value)


def _numbers(value: object, length: int) -> list[float]:
    """Give numbers between 0 and 1 that depend on nothing but the value."""
    seed = hashlib.sha256(repr(value).encode()).digest()
    return [byte / 255 for byte in seed[:length]]


def _usage(values: list[object]) -> Answer:
    tokens = sum(_tokens_of(value) for value in values)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _heading(prefix: str) -> Answer:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}


def _embeddings(members: Members, _: EngineConfig) -> Answer:
    inputs = _inputs(members)
    data: list[Answer] = []
    for index, value in enumerate(inputs):
        vector: list[float] | str = _numbers(value, _DIMENSIONS)
        if members.get("encoding_format") == "base64":
            packed = struct.pack(f"<{_DIMENSIONS}f", *_numbers(value, _DIMENSIONS))
            vector = base64.b64encode(packed).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    return {**_heading("embd"), "data": data, "usage": _usage(inputs)}


def _pooling(members: Members, _: EngineConfig) -> Answer:
    inputs = _inputs(members)
    data = [
        {"index": index, "object": "pooling", "data": _numbers(value, _DIMENSIONS)}
        for index, value in enumerate(inputs)
    ]
    return {**_heading("pool"), "data": data, "usage": _usage(inputs)}


def _classify(members: Members, _: EngineConfig) -> Answer:
    inputs = _inputs(members)
    data: list[Answer] = []
    for index, value in enumerate(inputs):
        share = _numbers(value, 1)[0]
        label = "LABEL_1" if share > 1 / 2 else "LABEL_0"
        probabilities = [1 - share, share]
        data.append({"index": index, "label": label, "probs": probabilities, "num_classes": 2})
    return {**_heading("classify"), "data": data, "usage": _usage(inputs)}


def _score(members: Members, _: EngineConfig) -> Answer:
    query, texts = _needed(members, "text_1"), _inputs(members, "text_2")
    data = [
        {"index": index, "object": "score", "score": _numbers([query, text], 1)[0]}
        for index, text in enumerate(texts)
    ]
    return {**_heading("score"), "data": data, "usage": _usage([query, *texts])}


def _rerank(members: Members, _: EngineConfig) -> Answer:
    query, documents = _needed(members, "query"), _inputs(members, "documents")
    results: list[tuple[float, int, object]] = sorted(
        ((_numbers([query, text], 1)[0], index, text) for index, text in enumerate(documents)),
        key=lambda result: (-result[0], result[1]),
    )
    top = members.get("top_n")
    wanted = top if isinstance(top, int) and top > 0 else len(results)
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "results": [
            {"index": index, "document": {"text": text}, "relevance_score": score}
            for score, index, text in results[:wanted]
        ],
        "usage": {"total_tokens": sum(_tokens_of(value) for value in [query, *documents])},
    }


def _tokenize(members: Members, config: EngineConfig) -> Answer:
    name = "messages" if members.get("messages") else "prompt"
    tokens = list(range(text_tokens(_needed(members, name))))
    return {
        "count": len(tokens),
        "max_model_len": config.max_model_len,
        "tokens": tokens,
        "token_strs": None,
    }


def _count_tokens(members: Members, _: EngineConfig) -> Answer:
    counted = ("system", "messages", "tools")
    _needed(members, "messages")
    return {"input_tokens": text_tokens([members.get(name) for name in counted])}


def _detokenize(members: Members, _: EngineConfig) -> Answer:
    tokens = _needed(members, "tokens")
    if not is_token_list(tokens) or not isinstance(tokens, list):
        raise malformed("Input should be a list of integers", "tokens")
    return {"prompt": " ".join(f"<{token}>" for token in tokens)}


ANSWERS: Mapping[str, Callable[[Members, EngineConfig], Answer]] = {
    "/v1/embeddings": _embeddings,
    "/pooling": _pooling,
    "/classify": _classify,
    "/v1/score": _score,
    "/score": _score,
    "/rerank": _rerank,
    "/v1/rerank": _rerank,
    "/v2/rerank": _rerank,
    "/v1/messages/count_tokens": _count_tokens,
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
}
"""What answers a body, by path."""
