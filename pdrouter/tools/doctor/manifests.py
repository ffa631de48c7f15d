"""Reads manifests: files, directories, and what another program prints."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml

from pdrouter.tools.doctor.snapshot import Document, Snapshot

_SUFFIXES = {".yaml", ".yml", ".json"}
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")


_LARGEST = 2_000_000
"""Values that one document may have once its aliases are unfolded."""


class _Loader(yaml.SafeLoader):
    """Reads dates as text, as kubectl does, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            yaml.constructor.ConstructorError: a key is there twice: which value counts is chance.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        ManifestsUnreadable: a file is missing or is no YAML, a directory needs kustomize, or there
            is nothing in them.
    """
    documents: list[Document] = []
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
    if not documents:
        # What was to print them has failed, or the wrong directory is named: all is not well.
        raise ManifestsUnreadable("there is no object in what is to be read")
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


def _parse(source: str, text: str) -> Iterator[Document]:
    """Yield the objects of a YAML stream; those of a `List` one by one.

    Raises:
        ManifestsUnreadable: it is no YAML, or not a stream of objects.
    """
    for line, content in load_documents(source, text):
        place = f"{source}:{line}"
        if content is None:
            continue
        if not isinstance(content, dict):
            raise ManifestsUnreadable(f"{place}: a document is no object")
        _check_size(place, content)
        items = content.get("items")
        if str(content.get("kind", "")).endswith("List") and isinstance(items, list):
            yield from (Document(item, place) for item in items if isinstance(item, dict))
        else:
            yield Document(content, place)


def load_documents(source: str, text: str) -> list[tuple[int, Any]]:
    """Return the documents of a YAML stream, each with its first line.

    Raises:
        ManifestsUnreadable: it is no YAML; the message says where.
    """
    documents = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                documents.append((node.start_mark.line + 1, loader.construct_document(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        words = [word for word in (error.context, error.problem) if word]
        raise ManifestsUnreadable(f"{place}: {', '.join(words)}") from error
    # Beside its own errors, PyYAML raises what its readers of scalars and its recursion run into.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ManifestsUnreadable(f"{source}: {' '.join(str(error).split())}") from error
    return documents


def _check_size(place: str, document: dict[Any, Any]) -> None:
    """Refuse a document whose aliases unfold to more than anybody can look at.

    Raises:
        ManifestsUnreadable: they do, or one holds itself.
    """
    count = 0
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _LARGEST:
            raise ManifestsUnreadable(f"{place}: its aliases unfold without end")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
