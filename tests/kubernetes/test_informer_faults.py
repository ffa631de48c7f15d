"""What the informer does when the API server, or the way to it, misbehaves."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
from fakekube import Certificate, FakeApiServer, make_pod
from informers import FAST, RULES, Informer, run_informer, wait_for
from kubernetes_asyncio.client import Configuration

from pdrouter.cluster.kubernetes import api as kube_api
from pdrouter.cluster.kubernetes.api import KubeConfigInvalid
from pdrouter.cluster.kubernetes.source import create_kubernetes_source
from pdrouter.cluster.view import PodCache

LABELS = {"model.aibrix.ai/name": "m", "role-name": "prefill"}


@dataclass
class Bench:
    """An API server with one pod, and an informer that knows it."""

    api: FakeApiServer
    informer: Informer
    created: int = 1

    async def expect_new_pod_seen(self) -> None:
        """Check that the informer follows, or catches up."""
        name = f"p{self.created}"
        self.created += 1
        self.api.store.create(make_pod(name, labels=LABELS))
        await wait_for(lambda: name in self.informer.addresses)
        assert known(self.informer) == existing(self.api)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with FakeApiServer() as api:
        api.store.create(make_pod("p0", labels=LABELS))
        async with run_informer(api.write_kubeconfig(tmp_path / "kubeconfig")) as informer:
            await wait_for(lambda: len(api.watches) == 3)
            yield Bench(api, informer)


async def test_a_watch_that_is_reset_goes_on_where_it_was(bench: Bench) -> None:
    bench.api.watches.abort(partial=b'{"type": "ADDED", "object": {"meta')
    await bench.expect_new_pod_seen()
    assert bench.informer.lists == 1
    assert bench.informer.restarts("connection") >= 1


async def test_a_watch_that_ends_is_begun_anew(bench: Bench) -> None:
    bench.api.watches.close()
    await bench.expect_new_pod_seen()
    assert bench.informer.lists == 1
    assert bench.informer.restarts("ended") >= 1


async def test_a_half_open_connection_is_given_up(bench: Bench) -> None:
    bench.api.watches.freeze()
    await bench.expect_new_pod_seen()
    assert bench.informer.restarts("timeout") >= 1


async def test_expired_history_in_an_event_leads_to_a_new_list(bench: Bench) -> None:
    bench.api.watches.fail(code=410)
    await bench.expect_new_pod_seen()
    await wait_for(lambda: bench.informer.lists == 2)
    assert bench.informer.restarts("expired") >= 1


async def test_expired_history_as_a_status_leads_to_a_new_list(bench: Bench) -> None:
    bench.api.faults.fail(410, verb="watch", resource="pods", times=2)
    bench.api.watches.abort()
    await bench.expect_new_pod_seen()
    await wait_for(lambda: bench.informer.lists == 2)


async def test_a_compacted_history_is_noticed(bench: Bench) -> None:
    await bench.api.stop()
    bench.api.store.delete("pods", "p0", namespace="default", grace=0)
    bench.api.store.compact()
    await bench.api.start()
    await bench.expect_new_pod_seen()
    assert "p0" not in bench.informer.states


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
async def test_an_error_is_retried_while_the_last_known_pods_stay(bench: Bench, code: int) -> None:
    bench.api.faults.fail(code, resource="pods", times=4)
    bench.api.watches.abort()
    await wait_for(lambda: bench.informer.restarts(str(code)) >= 2)
    assert bench.informer.addresses == {"p0": "10.0.0.1:8000"}
    assert bench.informer.cache.synced
    await bench.expect_new_pod_seen()


async def test_an_error_event_is_retried(bench: Bench) -> None:
    bench.api.watches.fail(code=500)
    await bench.expect_new_pod_seen()
    assert bench.informer.restarts("500") >= 1


async def test_the_pods_stay_in_use_through_an_outage(bench: Bench) -> None:
    await bench.api.stop()
    await wait_for(lambda: bench.informer.restarts("connection") >= 5)
    assert bench.informer.addresses == {"p0": "10.0.0.1:8000"}
    assert bench.informer.cache.synced
    await bench.api.start()
    await bench.expect_new_pod_seen()


@pytest.mark.parametrize("first", [None, 503, 429])
async def test_after_an_outage_changes_are_seen_at_once(tmp_path: Path, first: int | None) -> None:
    # Had the pauses gone on doubling, the next try would come after more time than tests wait.
    timing = replace(FAST, backoff_s=0.01, backoff_most_s=1000.0, unreachable_most_s=0.02)
    async with FakeApiServer() as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig, timing=timing) as informer:
            await api.stop()
            await wait_for(lambda: informer.restarts("connection") >= 3 * 16)
            if first is not None:
                # Servers that start answer so for a moment.
                api.faults.fail(first, times=3)
            await api.start()
            await Bench(api, informer).expect_new_pod_seen()


async def test_a_server_that_never_answers_is_given_up(bench: Bench) -> None:
    bench.api.faults.hang(resource="pods", times=2)
    bench.api.watches.abort()
    await bench.expect_new_pod_seen()
    assert bench.informer.restarts("timeout") >= 1


async def test_a_list_that_is_cut_is_asked_for_again(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        for number in range(250):
            api.store.create(make_pod(f"p{number}", labels=LABELS))
        api.faults.cut(after_bytes=1000, verb="list", resource="pods", times=3)
        async with run_informer(api.write_kubeconfig(tmp_path / "kubeconfig")) as informer:
            assert len(informer.states) == 250


async def test_a_version_from_the_future_is_found_out_by_silence(bench: Bench) -> None:
    await bench.expect_new_pod_seen()
    await bench.api.roll_back(1)
    bench.created = 10
    await bench.expect_new_pod_seen()


async def test_bookmarks_keep_a_quiet_watch_young(tmp_path: Path) -> None:
    async with FakeApiServer(bookmark_interval=0.2) as api:
        api.store.create(make_pod("p0", labels=LABELS))
        async with run_informer(api.write_kubeconfig(tmp_path / "kubeconfig")) as informer:
            # Nothing happens to our pods, and much to others.
            for number in range(20):
                api.store.create(make_pod(f"other{number}"))
            stats = next(iter(informer.source.stats.values()))
            await wait_for(lambda: stats.events["BOOKMARK"] >= 2)
            api.store.compact()
            api.watches.abort()
            await Bench(api, informer).expect_new_pod_seen()
            assert informer.lists == 1


async def test_everything_is_listed_again_from_time_to_time(tmp_path: Path) -> None:
    timing = replace(FAST, watch_s=(1.0, 1.0), relist_s=(0.0, 0.0))
    async with FakeApiServer() as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig, timing=timing) as informer:
            await wait_for(lambda: informer.lists >= 2)
            assert informer.addresses == {"p0": "10.0.0.1:8000"}


async def test_the_first_sync_waits_for_the_server(tmp_path: Path) -> None:
    async with FakeApiServer() as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        await api.stop()
        async with run_informer(kubeconfig, synced=False) as informer:
            await wait_for(lambda: informer.restarts("connection") >= 3)
            assert not informer.cache.synced
            await api.start()
            await wait_for(lambda: informer.cache.synced)
            await wait_for(lambda: informer.addresses == {"p0": "10.0.0.1:8000"})


async def test_a_rotated_token_is_read_again(tmp_path: Path) -> None:
    async with FakeApiServer(token="first") as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig) as informer:
            api.token = "second"
            api.watches.abort()
            await wait_for(lambda: informer.restarts("401") >= 1)
            assert informer.addresses == {"p0": "10.0.0.1:8000"}
            api.write_kubeconfig(kubeconfig)
            await Bench(api, informer).expect_new_pod_seen()


@pytest.mark.parametrize("written", ["", "{", "- a", "clusters: [", "\x00"])
async def test_a_kubeconfig_that_is_half_written_is_read_again(
    tmp_path: Path, written: str
) -> None:
    async with FakeApiServer(token="first") as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig) as informer:
            kubeconfig.write_text(written)
            api.token = "second"
            api.watches.abort()
            await wait_for(lambda: informer.restarts("connection") >= 4)
            assert informer.addresses == {"p0": "10.0.0.1:8000"}
            api.write_kubeconfig(kubeconfig)
            await Bench(api, informer).expect_new_pod_seen()


async def test_credentials_that_never_come_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang() -> Configuration:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(kube_api, "_CONFIGURE_S", 0.01)
    with pytest.raises(KubeConfigInvalid, match="no credentials within"):
        await kube_api.KubeApi(hang).__aenter__()


async def test_a_server_cannot_ask_for_a_pause_without_end(bench: Bench) -> None:
    bench.api.faults.fail(503, resource="pods", times=2, retry_after=10**9)
    bench.api.watches.abort()
    await bench.expect_new_pod_seen()


async def test_a_replaced_authority_is_read_again(tmp_path: Path) -> None:
    first, second = (create_certificate(tmp_path, name) for name in ("first", "second"))
    async with FakeApiServer(certificate=first) as api:
        api.store.create(make_pod("p0", labels=LABELS))
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig) as informer:
            await api.restart(certificate=second)
            await wait_for(lambda: informer.restarts("connection") >= 2)
            assert informer.addresses == {"p0": "10.0.0.1:8000"}
            api.write_kubeconfig(kubeconfig)
            await Bench(api, informer).expect_new_pod_seen()


def create_certificate(directory: Path, name: str) -> Certificate:
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return Certificate(cert=cert, key=key, ca=cert)


async def test_a_kubeconfig_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    source = create_kubernetes_source(
        PodCache(),
        RULES,
        kubeconfig=tmp_path / "none",
        namespaces=("default",),
        selectors=("role-name",),
        merge_namespaces=False,
        httproute_namespace="x",
        httproute_ttl_s=1,
    )
    with pytest.raises(KubeConfigInvalid, match="none"):
        await source.__aenter__()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_cache_comes_to_equal_the_server(
    tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    async with FakeApiServer(bookmark_interval=0.3) as api:
        kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
        async with run_informer(kubeconfig) as informer:
            for _ in range(300):
                await disturb(api, random)
                if random.random() < 0.2:
                    await asyncio.sleep(random.uniform(0, 0.02))
            api.faults.clear()
            await wait_for(lambda: known(informer) == existing(api))
            # Equal, and not only for a moment.
            await Bench(api, informer, created=1000).expect_new_pod_seen()
            assert known(informer) == existing(api)


def known(informer: Informer) -> dict[str, tuple[str, str, str]]:
    return {pod.uid: (pod.name, pod.role, pod.state) for pod in informer.cache.view.pods}


def existing(api: FakeApiServer) -> dict[str, tuple[str, str, str]]:
    pods = {}
    for pod in api.store.objects("pods"):
        metadata = pod["metadata"]
        labels = metadata.get("labels", {})
        if "model.aibrix.ai/name" not in labels:
            continue
        ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in pod["status"].get("conditions", ())
        )
        state = "ready" if ready else "unready"
        if "deletionTimestamp" in metadata:
            state = "terminating"
        pods[metadata["uid"]] = (metadata["name"], labels.get("role-name", "both"), state)
    return pods


async def disturb(api: FakeApiServer, random: Random) -> None:
    """Change something, or break something."""
    name = f"p{random.randrange(30)}"
    exists = any(pod["metadata"]["name"] == name for pod in api.store.objects("pods"))
    action = random.random()
    if action < 0.75:
        if not exists:
            labels = random.choice([LABELS, LABELS | {"role-name": "decode"}, {"app": "x"}])
            api.store.create(make_pod(name, labels=labels, ready=random.random() < 0.7))
        elif random.random() < 0.3:
            api.store.delete("pods", name, namespace="default", grace=random.choice([0, 0, 3600]))
        else:
            role = random.choice(["prefill", "decode", None])
            ready = random.choice(["True", "False"])
            api.store.patch(
                "pods",
                name,
                {
                    "metadata": {"labels": {"role-name": role}},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]},
                },
                namespace="default",
            )
    elif action < 0.80:
        api.watches.abort(partial=random.choice([b"", b'{"type":']))
    elif action < 0.84:
        api.watches.close()
    elif action < 0.87:
        api.watches.fail(code=random.choice([410, 500]))
    elif action < 0.90:
        api.store.compact()
    elif action < 0.92:
        api.watches.freeze()
    elif action < 0.94:
        await api.restart()
    elif action < 0.97:
        api.faults.fail(random.choice([401, 410, 429, 500, 503]), times=random.randrange(1, 3))
    elif action < 0.98:
        api.faults.hang(times=1)
    else:
        api.faults.cut(after_bytes=random.randrange(500), times=1)
