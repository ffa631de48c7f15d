"""`pdrouter key`: makes a user's API key, and what the file of users gets of it."""

import argparse
import json
import sys

from pdrouter.users.keys import SHORTEST, create_key, digest_key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("name", nargs="?", metavar="USER", help="whose key it is")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that the user may use, or a pattern such as 'demo-*'; all if none is named",
    )
    parser.add_argument(
        "--hash",
        action="store_true",
        help="make no key, but read one from standard input, where no shell remembers it",
    )


def run(options: argparse.Namespace) -> int:
    """Print a new key, and the user's entry for the file; with --hash, that of an old key.

    Returns:
        0; 2 if there is no user's name, or the key is too short to be hashed.
    """
    if options.name is None and not options.hash:
        print("pdrouter: whose key is it? pdrouter key USER", file=sys.stderr)
        return 2
    key = sys.stdin.readline().strip() if options.hash else create_key()
    if len(key) < SHORTEST:
        problem = (
            f"a key must have {SHORTEST} characters: shorter ones can be guessed by its digest"
        )
        print(f"pdrouter: {problem}", file=sys.stderr)
        return 2
    if options.name is None:
        print(digest_key(key))
        return 0
    if not options.hash:
        print("# The key, which is shown this once, is for the user:", file=sys.stderr)
        print(key, file=sys.stderr, flush=True)
        print("# For the file of PDROUTER_API_KEYS_FILE:", file=sys.stderr, flush=True)
    print(_render(options.name, key, options.model), end="")
    return 0


def _render(name: str, key: str, models: list[str]) -> str:
    """Return the entry of a user: strings of JSON are strings of YAML."""
    lines = [f"- name: {json.dumps(name)}", f"  keys: [{json.dumps(digest_key(key))}]"]
    if models:
        lines.append(f"  models: {json.dumps(models)}")
    return "".join(f"{line}\n" for line in lines)
