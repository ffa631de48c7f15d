#!/usr/bin/env python3
"""Compiles the schemas into Python modules of the packages that use them."""

import argparse
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PACKAGES = {"ext_proc": "pdrouter/extproc", "access_log": "pdrouter/extproc/access_log"}
"""Where the modules of a schema go."""


def compile_schemas(root: Path) -> None:
    """Writes the module `*_pb2.py` and its stub `.pyi` of each schema, in its package under `root`.

    Raises:
        subprocess.CalledProcessError: protoc refused a schema; its reason is on stderr.
    """
    # A file is compiled under the path of our package: a process can hold one schema file of a
    # name, and another project's copy may well be called ext_proc.proto too.
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        *(f"--proto_path={package}={PROTOS}" for package in PACKAGES.values()),
        f"--python_out={root}",
        f"--pyi_out={root}",
        *(f"{package}/{name}.proto" for name, package in PACKAGES.items()),
    ]
    subprocess.run(command, check=True)  # noqa: S603 (nothing here comes from outside)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=PROTOS.parent)
    compile_schemas(parser.parse_args().root)
