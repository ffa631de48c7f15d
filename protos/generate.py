#!/usr/bin/env python3
"""Compiles ext_proc.proto into the Python modules of `pdrouter/extproc/`."""

import argparse
import subprocess
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent


def compile_schema(root: Path) -> None:
    """Writes `pdrouter/extproc/ext_proc_pb2.py` and its stub `.pyi` under `root`.

    Raises:
        subprocess.CalledProcessError: protoc refused the schema; its reason is on stderr.
    """
    # The file is compiled under the path of our package: a process can hold one schema file of a
    # name, and another project's copy may well be called ext_proc.proto too.
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        f"--proto_path=pdrouter/extproc={PROTOS}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        "pdrouter/extproc/ext_proc.proto",
    ]
    subprocess.run(command, check=True)  # noqa: S603 (nothing here comes from outside)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=PROTOS.parent)
    compile_schema(parser.parse_args().root)
