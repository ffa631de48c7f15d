"""kubectl for a cluster that is a directory of objects; the real one makes the changes.

Usage: directory_kubectl.py DIRECTORY KUBECTL ARGUMENT...
It knows the forms of the setup guide: `set` and `patch` of one object, `apply` of one from standard
input, and `wait` and `rollout status`, for which it is enough that the object exists.
"""

import subprocess
import sys
from pathlib import Path

import yaml


def locate(directory: Path, namespace: str, kind: str, name: str) -> Path:
    """Return the file of an object; kinds are written in any case."""
    return directory / f"{namespace}.{kind.lower()}.{name}.yaml"


def store(directory: Path, text: str) -> None:
    """Keep an object."""
    one = yaml.safe_load(text)
    metadata = one["metadata"]
    path = locate(directory, metadata.get("namespace", ""), one["kind"], metadata["name"])
    path.write_text(text)


def main() -> int:
    """Carry one command out."""
    directory, kubectl, verb, *words = Path(sys.argv[1]), *sys.argv[2:]
    if verb == "apply":
        store(directory, sys.stdin.read())
        return 0
    at = words.index("-n")
    namespace = words[at + 1]
    del words[at : at + 2]
    if verb in {"set", "rollout"}:
        verb = f"{verb} {words.pop(0)}"
    target = next(index for index, word in enumerate(words) if not word.startswith("-"))
    kind, slash, name = words.pop(target).partition("/")
    path = locate(directory, namespace, kind, name if slash else words.pop(target))
    if not path.is_file():
        sys.exit(f"not found: {path.name}")
    if verb in {"wait", "rollout status"}:
        return 0
    command = [kubectl, *verb.split(), *words, "--local", "-f", str(path), "-o", "yaml"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        store(directory, done.stdout)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
