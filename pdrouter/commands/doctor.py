"""`pdrouter doctor`: says what is wrong with an installation, and what to change."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import aiohttp

from pdrouter.cluster.endpoints_file import create_pods, read_endpoints
from pdrouter.cluster.endpoints_text import Endpoints, EndpointsInvalid
from pdrouter.cluster.host_names import HostNames
from pdrouter.cluster.kubernetes.api import (
    KubeApi,
    KubeConfigInvalid,
    KubeRefused,
    connect_by_kubeconfig,
    connect_in_cluster,
    find_kubeconfig,
)
from pdrouter.engine_http.tls import EngineTls
from pdrouter.engines.registry import WIRES, Splits
from pdrouter.pem_files import CertificatesInvalid
from pdrouter.settings import Settings
from pdrouter.tools.doctor.asking import ask_engines
from pdrouter.tools.doctor.diagnosis import (
    Diagnosis,
    diagnose,
    diagnose_engines,
    diagnose_envoy,
)
from pdrouter.tools.doctor.envoy_file import read_envoy_file
from pdrouter.tools.doctor.findings import Severity
from pdrouter.tools.doctor.live import read_cluster, read_home_namespace
from pdrouter.tools.doctor.manifests import ManifestsUnreadable, read_manifests
from pdrouter.tools.doctor.report import render_json, render_text
from pdrouter.tools.doctor.snapshot import Snapshot
from pdrouter.tools.doctor.survey import Survey
from pdrouter.wiring.rules import create_splits, find_engine_tls

_FORBIDDEN = 403


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    subjects = parser.add_mutually_exclusive_group()
    subjects.add_argument(
        "--manifests",
        nargs="+",
        metavar="PATH",
        help="read these files or directories, or the standard input (-), instead of a cluster: "
        "kubectl kustomize DIR | pdrouter doctor --manifests -",
    )
    subjects.add_argument(
        "--endpoints",
        metavar="FILE",
        help="ask the engines of an endpoints file instead: what they serve, and whether each "
        "prefill engine hands its blocks to a decode engine (a request of one token)",
    )
    subjects.add_argument(
        "--envoy",
        metavar="FILE",
        help="read the configuration of an Envoy instead (its bootstrap, or what its admin port "
        "says to /config_dump): whether a retry policy would send a KV handle twice",
    )
    subjects.add_argument(
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
        cluster cannot be read, 2 if a file that was named cannot be read.
    """
    try:
        diagnosis = _diagnose(options)
    except (ManifestsUnreadable, EndpointsInvalid, CertificatesInvalid) as error:
        print(f"pdrouter doctor: {error}", file=sys.stderr)
        return 2
    except (KubeConfigInvalid, KubeRefused, aiohttp.ClientError, OSError) as error:
        hint = ""
        if isinstance(error, KubeRefused) and error.code == _FORBIDDEN:
            hint = ": nothing may be listed; bind the ClusterRole view, or name --namespaces"
        print(
            f"pdrouter doctor: {str(error).strip() or type(error).__name__}{hint}", file=sys.stderr
        )
        return 1
    print((render_json if options.json else render_text)(diagnosis), end="")
    return 1 if diagnosis.count(Severity.ERROR) else 0


def _diagnose(options: argparse.Namespace) -> Diagnosis:
    if options.endpoints:
        return _ask_engines(Path(options.endpoints))
    if options.envoy:
        return diagnose_envoy(read_envoy_file(Path(options.envoy)))
    if options.manifests:
        return diagnose(read_manifests(options.manifests, sys.stdin))
    return diagnose(asyncio.run(_read_cluster(options)))


def _ask_engines(path: Path) -> Diagnosis:
    """Judge the engines of a file; both legs are written as the router would write them here.

    Raises:
        EndpointsInvalid: the file cannot be read.
        CertificatesInvalid: the files for TLS to engines cannot be used.
    """
    settings = Settings.load(os.environ, {})
    splits = create_splits(settings)
    endpoints = read_endpoints(path, WIRES)
    for remark in endpoints.remarks:
        print(f"pdrouter doctor: {path}: {remark}", file=sys.stderr)
    return diagnose_engines(asyncio.run(_survey(endpoints, splits, find_engine_tls(settings))))


async def _survey(endpoints: Endpoints, splits: Splits, tls: EngineTls | None) -> Survey:
    # An engine whose name is not resolved is asked by its name, which says why it is not.
    addresses = await HostNames().look_up(endpoints.host_names)
    pods = create_pods(endpoints, addresses)
    # The ranks behind one port are one engine.
    return await ask_engines(tuple(pod for pod in pods if not pod.number), splits, tls)


async def _read_cluster(options: argparse.Namespace) -> Snapshot:
    names = tuple(name.strip() for name in options.namespaces.split(",") if name.strip())
    named = options.kubeconfig or os.environ.get("KUBECONFIG")
    kubeconfig = find_kubeconfig(Path(named) if named else None)
    connect = connect_by_kubeconfig(kubeconfig) if kubeconfig else connect_in_cluster
    async with KubeApi(connect) as api:
        home = read_home_namespace(kubeconfig)
        return await read_cluster(api, names, home=home, probe=options.probe)
