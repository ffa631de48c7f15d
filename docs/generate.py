"""Writes the pages that are made from code; `make docs` runs it."""

from pathlib import Path

from pdrouter.settings import describe_settings

_CONFIGURATION = """# Configuration

Every setting of `pdrouter serve` is an environment variable; those that are most often changed on
a command line are options too, and an option wins. An empty variable counts as unset. A value that
is not allowed stops the start with exit code 2 and one line that names the variable, its value and
what is allowed. `ROUTING_ALGORITHM` and the `AIBRIX_*` names mean what they mean in aibrix, except
that aibrix replaces a bad number by its default and goes on.

`pdrouter settings` prints this table.

"""


def render_configuration() -> str:
    """Return `docs/configuration.md`."""
    return _CONFIGURATION + describe_settings()


def main() -> None:
    """Write the pages."""
    Path(__file__).with_name("configuration.md").write_text(render_configuration())


if __name__ == "__main__":
    main()
