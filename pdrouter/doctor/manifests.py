"""Reads manifests: files, directories, and what another program prints."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from pdrouter.doctor.snapshot import Snapshot

_SUFFIXES = {".yaml", ".yml", ".json"}
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


class _Loader(yaml.SafeLoader):
    """Reads dates as text, as kubectl does."""


_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if not resolver[0].endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class ManifestsUnreadable(Exception):
    """Manifests cannot be read; the message says which, and why."""


def read_manifests(paths: Iterable[str], stdin: TextIO) -> Snapshot:
    """Return the objects of manifests.

    Args:
        paths: files, directories to look into, or `-` for the standard input.
        stdin: the standard input.

    Raises:
        ManifestsUnreadable: a file is missing or is no YAML, or a directory needs kustomize.
    """
    documents: list[Mapping[str, Any]] = []
    for path in paths:
        if path == "-":
            documents += _parse("standard input", stdin.read())
            continue
        for file in _find_files(Path(path)):
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ManifestsUnreadable(f"{file}: {error}") from error
            documents += _parse(str(file), text)
    return Snapshot.build(documents)


def _find_files(path: Path) -> list[Path]:
    """Return the files to read.

    Raises:
        ManifestsUnreadable: the path is missing, or needs kustomize: its files alone are patches
            and parts.
    """
    if not path.is_dir():
        return [path]
    for name in _KUSTOMIZATIONS:
        for found in sorted(path.rglob(name)):
            raise ManifestsUnreadable(
                f"{found.parent} is a kustomization: "
                f"kubectl kustomize {found.parent} | pdrouter doctor --manifests -"
            )
    return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())


def _parse(source: str, text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a YAML stream; those of a `List` one by one.

    Raises:
        ManifestsUnreadable: it is no YAML, or not a stream of objects.
    """
    try:
        documents = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise ManifestsUnreadable(f"{source}: {error}") from error
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ManifestsUnreadable(f"{source}: a document is no object")
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            yield from (item for item in items if isinstance(item, dict))
        else:
            yield document
