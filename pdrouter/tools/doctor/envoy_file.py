"""Reads the configuration of an Envoy that nobody manages: its bootstrap, or a dump of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdrouter.tools.doctor.findings import Check, Defect
from pdrouter.tools.doctor.manifests import ManifestsUnreadable, load_documents
from pdrouter.tools.doctor.objects.base import ObjectRef
from pdrouter.tools.doctor.patches import name_as_protobuf
from pdrouter.tools.doctor.retry_policies import SAFE, find_policies

_SIGNS = frozenset({"static_resources", "dynamic_resources", "configs"})
"""What a bootstrap has one of, or what the admin port's `/config_dump` says."""


@dataclass(frozen=True, slots=True)
class EnvoyFile:
    """A file of Envoy's configuration.

    Attributes:
        name: the file.
        content: its members, named as in protobuf.
    """

    name: str
    content: dict[str, Any]


def read_envoy_file(path: Path) -> EnvoyFile:
    """Return what a file says.

    Raises:
        ManifestsUnreadable: there is none, or it is no configuration of Envoy's.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestsUnreadable(f"{path}: {error}") from error
    documents = [content for _, content in load_documents(str(path), text) if content]
    content = name_as_protobuf(documents[0]) if len(documents) == 1 else None
    if not isinstance(content, dict) or _SIGNS.isdisjoint(content):
        raise ManifestsUnreadable(f"{path}: it is no configuration of Envoy")
    return EnvoyFile(str(path), content)


def _find_double_sends(file: EnvoyFile) -> Iterator[Defect]:
    for field, problem in find_policies(file.content):
        yield Defect(ObjectRef("Envoy", "", file.name), field, problem, SAFE)


def create_envoy_checks(known: Check[Any]) -> tuple[Check[EnvoyFile], ...]:
    """Return the checks of such a file: the same finding as for objects of Kubernetes.

    Args:
        known: the check of those.
    """
    return (Check(known.code, known.severity, known.meaning, known.why, _find_double_sends),)
