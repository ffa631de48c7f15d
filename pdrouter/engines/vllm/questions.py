"""The least request that shows whether a vLLM engine generates: one token, of one word.

Whether the process lives, its health check says too; but not whether it answers this.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_WORD = "ping"
_MESSAGES = [{"role": "user", "content": _WORD}]
_PATH = "/v1/completions"
_QUESTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        _PATH: {"prompt": _WORD, "max_tokens": 1},
        "/v1/chat/completions": {"messages": _MESSAGES, "max_tokens": 1},
        "/v1/messages": {"messages": _MESSAGES, "max_tokens": 1},
        "/v1/embeddings": {"input": _WORD},
    }
)


def ask(path: str, model: str) -> tuple[str, Mapping[str, Any]]:
    """Return the path and the body of a question.

    Args:
        path: what could not be done, if it is to be asked for again.
        model: the model or adapter.
    """
    path = path if path in _QUESTIONS else _PATH
    return path, {"model": model, **_QUESTIONS[path]}
