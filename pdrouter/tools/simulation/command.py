"""`pdrouter engine`: one simulated engine in the foreground."""

import argparse
import asyncio
import signal
import sys
from typing import get_args

import msgspec

from pdrouter.ports import naming_port
from pdrouter.tools.simulation.config import (
    EngineConfig,
    EngineRelease,
    EngineRole,
    KvConnector,
    Priorities,
)
from pdrouter.tools.simulation.engine import SimulatedEngine
from pdrouter.tools.simulation.faults import parse_assignments

_DEFAULTS = EngineConfig(engine_id="")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--role", choices=get_args(EngineRole), default=_DEFAULTS.role)
    parser.add_argument("--host", default="0.0.0.0", help="address to bind to")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="model to serve; repeat it for adapters of the first",
    )
    parser.add_argument(
        "--tls-cert", metavar="PATH", default="", help="serve HTTPS, with this certificate (PEM)"
    )
    parser.add_argument("--tls-key", metavar="PATH", default="", help="its private key")
    _add_wire(parser)
    _add_speed(parser)
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="misbehave from the start, as in status=503 times=2; see PUT /simulation/faults",
    )


def _add_wire(parser: argparse.ArgumentParser) -> None:
    """Declare what the engine takes, and gives to others."""
    parser.add_argument(
        "--kv-connector", choices=get_args(KvConnector), default=_DEFAULTS.kv_connector
    )
    parser.add_argument(
        "--p2p-pull", action="store_true", help="have a P2P tier beside NIXL's connector"
    )
    parser.add_argument(
        "--ec-connector", action="store_true", help="fetch media from encode engines"
    )
    parser.add_argument(
        "--mm-embeds", action="store_true", help="take what stands for encoded media"
    )
    parser.add_argument("--release", choices=get_args(EngineRelease), default=_DEFAULTS.release)
    parser.add_argument(
        "--priorities",
        choices=get_args(Priorities),
        default=_DEFAULTS.priorities,
        help="what becomes of a request's `priority`",
    )
    parser.add_argument(
        "--revision",
        metavar="TEXT",
        default=_DEFAULTS.revision,
        help="version; blocks go only to engines that have the same",
    )
    parser.add_argument(
        "--side-channel-host",
        metavar="HOST",
        help="remote_host in handles; real engines say localhost or 0.0.0.0",
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    """Declare how fast and how large the engine is."""
    for option, default, what in (
        ("--prefill-tokens-per-s", _DEFAULTS.prefill_tokens_per_s, "prefill speed; 0 is instant"),
        ("--itl-ms", _DEFAULTS.itl_ms, "milliseconds between two output tokens"),
        ("--kv-lease-s", _DEFAULTS.kv_lease_s, "seconds for which prefilled blocks are held"),
    ):
        parser.add_argument(option, type=float, default=default, help=f"{what} ({default:g})")
    for option, count, what in (
        ("--bootstrap-port", _DEFAULTS.bootstrap_port, "where engines meet; 0 is any"),
        ("--data-parallel-size", _DEFAULTS.data_parallel_size, "ranks behind the port"),
        ("--slots", _DEFAULTS.slots, "requests that run at once"),
        ("--max-model-len", _DEFAULTS.max_model_len, "longest prompt plus output, in tokens"),
    ):
        parser.add_argument(option, type=int, default=count, help=f"{what} ({count})")
    parser.add_argument(
        "--prefill-buckets",
        type=parse_lengths,
        metavar="N,N",
        default=_DEFAULTS.prefill_buckets,
        help="prompt lengths that it is compiled for, ascending, as Neuron engines are",
    )


def parse_lengths(text: str) -> tuple[int, ...]:
    """Return whole numbers that are separated by commas.

    Raises:
        argparse.ArgumentTypeError: They are none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"{text!r} is no list of whole numbers"
        raise argparse.ArgumentTypeError(message) from None


async def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        The exit code: 0 after a signal, 1 if the address cannot be bound, 2 if an option has a
        value that cannot be used.
    """
    try:
        engine = SimulatedEngine(_config(args), *parse_assignments(args.fault))
    except (ValueError, msgspec.ValidationError) as error:
        return _fail(2, error)
    try:
        with naming_port("--host or --port", args.host, args.port):
            await engine.start()
    except OSError as error:
        return _fail(1, error)
    try:
        config = engine.config
        _say(
            f"{config.role} engine of {', '.join(config.models)} at {config.scheme}://{engine.address}"
        )
        _say("It is simulated: all that it answers is made up.")
        await _wait_for_signal()
    finally:
        await engine.stop()
    return 0


def _config(args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        role=args.role,
        models=tuple(args.model or _DEFAULTS.models),
        host=args.host,
        port=args.port,
        kv_connector=args.kv_connector,
        p2p_pull=args.p2p_pull,
        ec_connector=args.ec_connector,
        mm_embeds=args.mm_embeds,
        data_parallel_size=args.data_parallel_size,
        prefill_tokens_per_s=args.prefill_tokens_per_s,
        prefill_buckets=args.prefill_buckets,
        itl_ms=args.itl_ms,
        slots=args.slots,
        priorities=args.priorities,
        kv_lease_s=args.kv_lease_s,
        max_model_len=args.max_model_len,
        release=args.release,
        revision=args.revision,
        side_channel_host=args.side_channel_host,
        bootstrap_port=args.bootstrap_port,
        tls_certificate=args.tls_cert,
        tls_key=args.tls_key,
    )


async def _wait_for_signal() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(code: int, error: Exception) -> int:
    sys.stderr.write(f"pdrouter engine: {error}\n")
    return code
