"""Fuzzes the HTTP/2 server with atheris: `make fuzz`. Not a test that pytest collects."""

import sys

import atheris

with atheris.instrument_imports(include=["pdrouter.extproc.http2", "hpack"]):
    from http2_abuse import try_one

if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
