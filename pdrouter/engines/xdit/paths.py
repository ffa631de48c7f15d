"""Where xDiT takes what clients ask for at OpenAI's paths."""

from collections.abc import Mapping
from types import MappingProxyType

PATHS: Mapping[str, str] = MappingProxyType(
    {"/v1/images/generations": "/generate", "/v1/video/generations": "/generatevideo"}
)
"""Its own paths, by OpenAI's. What is not there has one name in both."""
