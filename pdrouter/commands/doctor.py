"""`pdrouter doctor`: says what is wrong with an installation, and what to change."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from pdrouter.cluster.kube_api import (
    Connect,
    KubeApi,
    KubeConfigInvalid,
    KubeRefused,
    connect_by_kubeconfig,
    connect_in_cluster,
)
from pdrouter.doctor.diagnosis import diagnose
from pdrouter.doctor.findings import Severity
from pdrouter.doctor.live import read_cluster
from pdrouter.doctor.manifests import ManifestsUnreadable, read_manifests
from pdrouter.doctor.report import render_json, render_text
from pdrouter.doctor.snapshot import Snapshot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--manifests",
        nargs="+",
        metavar="PATH",
        help="read these files or directories, or the standard input (-), instead of a cluster: "
        "kubectl kustomize DIR | pdrouter doctor --manifests -",
    )
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help="how to reach the cluster (default: KUBECONFIG, then ~/.kube/config, then the service "
        "account of the pod that this runs in)",
    )
    parser.add_argument(
        "--namespaces",
        default="",
        metavar="NAMES",
        help="namespaces to look into, separated by commas (default: all)",
    )
    parser.add_argument(
        "--probe", action="store_true", help="try to connect to every ready pod of the cluster"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print what is wrong.

    Returns:
        0 if there is no error among the findings (warnings may be), 1 if there is one or the
        cluster cannot be read, 2 if the manifests cannot be read.
    """
    try:
        snapshot = _read(options)
    except ManifestsUnreadable as error:
        print(f"pdrouter doctor: {error}", file=sys.stderr)
        return 2
    except (KubeConfigInvalid, KubeRefused, aiohttp.ClientError, OSError) as error:
        print(f"pdrouter doctor: {error or type(error).__name__}", file=sys.stderr)
        return 1
    diagnosis = diagnose(snapshot)
    print((render_json if options.json else render_text)(diagnosis), end="")
    return 1 if diagnosis.count(Severity.ERROR) else 0


def _read(options: argparse.Namespace) -> Snapshot:
    if options.manifests:
        return read_manifests(options.manifests, sys.stdin)
    names = tuple(name.strip() for name in options.namespaces.split(",") if name.strip())
    return asyncio.run(_read_cluster(_choose(options.kubeconfig), names, probe=options.probe))


async def _read_cluster(connect: Connect, namespaces: tuple[str, ...], *, probe: bool) -> Snapshot:
    async with KubeApi(connect) as api:
        return await read_cluster(api, namespaces, probe=probe)


def _choose(kubeconfig: str | None) -> Connect:
    """Return how to reach the cluster, as kubectl finds it."""
    usual = Path.home() / ".kube" / "config"
    path = kubeconfig or os.environ.get("KUBECONFIG") or (str(usual) if usual.exists() else "")
    return connect_by_kubeconfig(Path(path)) if path else connect_in_cluster
