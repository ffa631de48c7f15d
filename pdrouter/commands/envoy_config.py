"""`pdrouter envoy-config`: an Envoy bootstrap that fits the router's settings."""

import argparse
import os
import sys

from pdrouter.settings import Settings, find_unknown_names
from pdrouter.tools.envoy_config import command
from pdrouter.tools.envoy_config.command import run
from pdrouter.tools.envoy_config.pod_tls import name_file

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; what the router's settings also say is taken from the environment.

    Raises:
        SettingInvalid: a variable has a value that is not allowed.
    """
    command.add_arguments(parser)
    for unknown in find_unknown_names(os.environ):
        print(f"pdrouter: {unknown}", file=sys.stderr)
    settings = Settings.load(os.environ, {})
    parser.set_defaults(
        max_message_bytes=settings.max_message_bytes,
        prefill_timeout=settings.prefill_timeout_s,
        workers=settings.workers,
        engine_tls=settings.engine_tls.value,
        engine_ca_file=name_file(settings.engine_ca),
        engine_server_name=settings.engine_server_name,
        engine_client_certificate=name_file(settings.engine_client_certificate),
        engine_client_key=name_file(settings.engine_client_key),
    )
