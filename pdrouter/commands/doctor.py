"""`pdrouter doctor`: says what is wrong with an installation, and what to change."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from pdrouter.cluster.kube_api import (
    KubeApi,
    KubeConfigInvalid,
    KubeRefused,
    connect_by_kubeconfig,
    connect_in_cluster,
)
from pdrouter.doctor.diagnosis import diagnose
from pdrouter.doctor.findings import Severity
from pdrouter.doctor.live import read_cluster, read_home_namespace
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
    return asyncio.run(_read_cluster(options))


async def _read_cluster(options: argparse.Namespace) -> Snapshot:
    names = tuple(name.strip() for name in options.namespaces.split(",") if name.strip())
    kubeconfig = _find_kubeconfig(options.kubeconfig)
    connect = connect_by_kubeconfig(kubeconfig) if kubeconfig else connect_in_cluster
    async with KubeApi(connect) as api:
        home = read_home_namespace(kubeconfig)
        return await read_cluster(api, names, home=home, probe=options.probe)


def _find_kubeconfig(named: str | None) -> Path | None:
    """Return the file that says how to reach the cluster, as kubectl finds it; None in a pod."""
    usual = Path.home() / ".kube" / "config"
    path = named or os.environ.get("KUBECONFIG") or (str(usual) if usual.exists() else "")
    return Path(path) if path else None
