"""How the fake server answers reads and writes over HTTP."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from api_client import DEFAULT_PODS, PODS, ApiClient, connect, names
from fakekube import FakeApiServer, make_pod
from kubernetes_asyncio import client, config

ADAPTERS = "/apis/model.aibrix.ai/v1alpha1/modeladapters"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as running:
        yield running


@pytest_asyncio.fixture
async def http(api: FakeApiServer) -> AsyncIterator[ApiClient]:
    async with connect(api) as connected:
        yield connected


def create_pods(api: FakeApiServer, count: int, **more: Any) -> list[str]:
    names = [f"pod-{n:04}" for n in range(count)]
    for name in names:
        api.store.create(make_pod(name, **more))
    return names


async def test_a_list_of_built_in_objects_carries_its_version_and_items_without_a_type(
    api: FakeApiServer, http: ApiClient
) -> None:
    create_pods(api, 1)
    status, listed = await http.get(PODS)
    assert status == 200
    assert (listed["kind"], listed["apiVersion"]) == ("PodList", "v1")
    assert listed["metadata"] == {"resourceVersion": str(api.store.resource_version)}
    assert listed["items"][0].keys() == {"metadata", "spec", "status"}


async def test_an_empty_list_has_items(http: ApiClient) -> None:
    _, listed = await http.get(ADAPTERS)
    assert listed["items"] == []


async def test_pages_show_the_state_in_which_the_first_was_read(
    api: FakeApiServer, http: ApiClient
) -> None:
    expected = create_pods(api, 5)
    _, page = await http.get(PODS, limit="2")
    first_version, found = page["metadata"]["resourceVersion"], names(page)
    assert page["metadata"]["remainingItemCount"] == 3
    api.store.delete("pods", "pod-0003", grace=0)
    api.store.create(make_pod("pod-0002a"))
    while token := page["metadata"].get("continue"):
        _, page = await http.get(PODS, **{"limit": "2", "continue": token})
        assert page["metadata"]["resourceVersion"] == first_version
        found += names(page)
    assert found == expected


async def test_a_page_whose_state_was_compacted_is_gone_with_a_token_for_the_rest(
    api: FakeApiServer, http: ApiClient
) -> None:
    create_pods(api, 3)
    _, page = await http.get(PODS, limit="1")
    api.store.create(make_pod("pod-9"))
    api.store.compact()
    status, gone = await http.get(PODS, **{"continue": page["metadata"]["continue"]})
    assert (status, gone["reason"], gone["code"]) == (410, "Expired", 410)
    _, rest = await http.get(PODS, **{"continue": gone["metadata"]["continue"]})
    assert names(rest) == ["pod-0001", "pod-0002", "pod-9"]


async def test_pages_are_filled_with_what_the_selectors_select(
    api: FakeApiServer, http: ApiClient
) -> None:
    create_pods(api, 4)
    api.store.patch("pods", "pod-0000", {"metadata": {"labels": {"role-name": "prefill"}}})
    api.store.patch("pods", "pod-0003", {"metadata": {"labels": {"role-name": "decode"}}})
    selector = "role-name in (prefill,decode)"
    _, page = await http.get(PODS, limit="2", labelSelector=selector)
    assert names(page) == ["pod-0000", "pod-0003"]
    assert page["metadata"].keys() == {"resourceVersion"}
    _, page = await http.get(PODS, fieldSelector="metadata.name=pod-0001")
    assert names(page) == ["pod-0001"]


async def test_a_namespace_in_the_path_bounds_the_list(api: FakeApiServer, http: ApiClient) -> None:
    api.store.create(make_pod("a"))
    api.store.create(make_pod("b", namespace="team"))
    _, all_pods = await http.get(PODS)
    _, own = await http.get("/api/v1/namespaces/team/pods")
    assert (names(all_pods), names(own)) == (["a", "b"], ["b"])


@pytest.mark.parametrize(
    ("query", "listed"),
    [
        ({}, ["a", "b"]),
        ({"resourceVersion": "0"}, ["a", "b"]),
        ({"resourceVersion": "0", "limit": "1"}, ["a", "b"]),
        ({"resourceVersion": "OLD"}, ["a", "b"]),
        ({"resourceVersion": "OLD", "resourceVersionMatch": "NotOlderThan"}, ["a", "b"]),
        ({"resourceVersion": "OLD", "resourceVersionMatch": "Exact"}, ["a"]),
        ({"resourceVersion": "OLD", "limit": "5"}, ["a"]),
    ],
)
async def test_the_version_asked_for_decides_which_state_is_listed(
    api: FakeApiServer, http: ApiClient, query: dict[str, str], listed: list[str]
) -> None:
    old = api.store.create(make_pod("a"))["metadata"]["resourceVersion"]
    api.store.create(make_pod("b"))
    _, found = await http.get(PODS, **{k: v.replace("OLD", old) for k, v in query.items()})
    assert names(found) == listed


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [
        ({"resourceVersion": "1", "resourceVersionMatch": "Exact"}, 410, "Expired"),
        ({"resourceVersion": "999999"}, 504, "Timeout"),
        ({"resourceVersion": "garbage"}, 500, "InternalError"),
        ({"resourceVersionMatch": "Exact"}, 400, "BadRequest"),
        ({"resourceVersion": "0", "resourceVersionMatch": "Exact"}, 400, "BadRequest"),
        ({"resourceVersion": "1", "resourceVersionMatch": "Newest"}, 400, "BadRequest"),
        ({"continue": "garbage"}, 400, "BadRequest"),
        ({"continue": "e30", "resourceVersion": "5"}, 400, "BadRequest"),
        ({"limit": "many"}, 400, "BadRequest"),
        ({"labelSelector": "a in b"}, 400, "BadRequest"),
        ({"fieldSelector": "spec.color=red"}, 400, "BadRequest"),
    ],
)
async def test_a_list_that_cannot_be_answered_is_refused_with_a_status(
    api: FakeApiServer, http: ApiClient, query: dict[str, str], code: int, reason: str
) -> None:
    api.store.compact()
    status, refused = await http.get(PODS, **query)
    assert (status, refused["code"], refused["reason"]) == (code, code, reason)
    assert (refused["kind"], refused["status"]) == ("Status", "Failure")


async def test_a_kind_without_crd_has_no_path() -> None:
    async with FakeApiServer(absent=("modeladapters",)) as api, connect(api) as http:
        assert await http.get(ADAPTERS) == (404, "404 page not found\n")
        assert api.count("list", "modeladapters") == 1
        _, groups = await http.get("/apis")
        assert "model.aibrix.ai" not in [group["name"] for group in groups["groups"]]


async def test_the_server_describes_itself(http: ApiClient) -> None:
    assert await http.get("/livez") == (200, "ok")
    _, version = await http.get("/version")
    assert version["major"] == "1"
    _, group = await http.get("/apis/model.aibrix.ai")
    assert group["preferredVersion"]["version"] == "v1alpha1"
    _, resources = await http.get("/apis/model.aibrix.ai/v1alpha1")
    assert [resource["name"] for resource in resources["resources"]] == [
        "modeladapters",
        "modeladapters/status",
    ]
    status, _ = await http.get("/apis/model.aibrix.ai/v2")
    assert status == 404


async def test_a_created_object_starts_with_the_status_that_the_server_gives_it(
    api: FakeApiServer, http: ApiClient
) -> None:
    status, created = await http.send("POST", DEFAULT_PODS, make_pod())
    assert (status, created["status"]["phase"]) == (201, "Pending")
    wanted = {"status": {"phase": "Running"}, "spec": {"nodeName": "n"}}
    path = f"{DEFAULT_PODS}/pod-0/status"
    merge = "application/merge-patch+json"
    _, patched = await http.send("PATCH", path, wanted, content_type=merge)
    assert (patched["status"]["phase"], patched["spec"]["nodeName"]) == ("Running", "node-0")
    wanted = {"status": {"phase": "Failed"}, "spec": {"nodeName": "n"}}
    _, patched = await http.send("PATCH", f"{DEFAULT_PODS}/pod-0", wanted, content_type=merge)
    assert (patched["status"]["phase"], patched["spec"]["nodeName"]) == ("Running", "n")


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "reason"),
    [
        ("GET", f"{DEFAULT_PODS}/absent", None, 404, "NotFound"),
        ("DELETE", f"{DEFAULT_PODS}/absent", None, 404, "NotFound"),
        ("POST", DEFAULT_PODS, make_pod("taken"), 409, "AlreadyExists"),
        ("POST", DEFAULT_PODS, make_pod(namespace="other"), 400, "BadRequest"),
        ("POST", "/api/v1/namespaces/none/pods", make_pod(namespace="none"), 404, "NotFound"),
        ("POST", CONFIG_MAPS, make_pod(), 400, "BadRequest"),
        ("POST", DEFAULT_PODS, [], 400, "BadRequest"),
        ("PUT", f"{DEFAULT_PODS}/taken", make_pod("taken", uid="other"), 409, "Conflict"),
        ("DELETE", f"{DEFAULT_PODS}/taken", {"preconditions": {"uid": "x"}}, 409, "Conflict"),
        ("GET", f"{DEFAULT_PODS}/taken/log", None, 404, "NotFound"),
        ("OPTIONS", f"{DEFAULT_PODS}/taken", None, 405, "MethodNotAllowed"),
    ],
)
async def test_a_request_that_cannot_be_done_is_refused_with_a_status(
    api: FakeApiServer,
    http: ApiClient,
    method: str,
    path: str,
    body: Any,
    code: int,
    reason: str,
) -> None:
    api.store.create(make_pod("taken"))
    status, refused = await http.send(method, path, body)
    assert (status, refused["code"], refused["reason"]) == (code, code, reason)


async def test_custom_resources_take_no_strategic_merge_patch(
    api: FakeApiServer, http: ApiClient
) -> None:
    api.store.create(
        {
            "apiVersion": "model.aibrix.ai/v1alpha1",
            "kind": "ModelAdapter",
            "metadata": {"name": "a"},
        }
    )
    path = "/apis/model.aibrix.ai/v1alpha1/namespaces/default/modeladapters/a"
    strategic = "application/strategic-merge-patch+json"
    status, _ = await http.send("PATCH", path, {"spec": {}}, content_type=strategic)
    assert status == 415


async def test_a_collection_is_deleted_by_selector(api: FakeApiServer, http: ApiClient) -> None:
    create_pods(api, 2, labels={"a": "b"})
    api.store.create(make_pod("other"))
    query = {"labelSelector": "a=b", "gracePeriodSeconds": "0"}
    status, _ = await http.send("DELETE", DEFAULT_PODS, **query)
    assert status == 200
    assert [pod["metadata"]["name"] for pod in api.store.objects("pods")] == ["other"]


async def test_a_table_has_a_row_with_metadata_for_each_object(
    api: FakeApiServer, http: ApiClient
) -> None:
    create_pods(api, 2)
    _, table = await http.get(PODS, accept=TABLE, limit="1")
    assert table["kind"] == "Table"
    assert [column["name"] for column in table["columnDefinitions"]][:3] == [
        "Name",
        "Ready",
        "Status",
    ]
    [row] = table["rows"]
    assert row["cells"][:3] == ["pod-0000", "1/1", "Running"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert "continue" in table["metadata"]


async def test_metadata_alone_can_be_listed(api: FakeApiServer, http: ApiClient) -> None:
    create_pods(api, 1)
    _, listed = await http.get(PODS, accept=METADATA_LIST)
    assert listed["kind"] == "PartialObjectMetadataList"
    assert listed["items"][0].keys() == {"kind", "apiVersion", "metadata"}


async def test_the_client_library_reads_pages_and_watches(
    api: FakeApiServer, tmp_path: Any
) -> None:
    create_pods(api, 3, managed_fields=True)
    configuration = client.Configuration()
    await config.load_kube_config(
        str(api.write_kubeconfig(tmp_path / "config")), client_configuration=configuration
    )
    async with client.ApiClient(configuration) as library:
        core = client.CoreV1Api(library)
        page = await core.list_namespaced_pod("default", limit=2)
        rest = await core.list_namespaced_pod("default", limit=2, _continue=page.metadata._continue)
        found = [pod.metadata.name for pod in (*page.items, *rest.items)]
        assert found == ["pod-0000", "pod-0001", "pod-0002"]
        assert page.items[0].status.pod_ip == "10.0.0.1"
        with pytest.raises(client.ApiException) as refused:
            await core.read_namespaced_pod("absent", "default")
        assert refused.value.status == 404
    assert api.count("list", "pods", limit="2") == 2


async def test_large_lists_are_compressed_for_clients_that_accept_it() -> None:
    async with FakeApiServer(gzip=True) as api, connect(api) as http:
        create_pods(api, 40, managed_fields=True)
        async with aiohttp.ClientSession() as session, session.get(api.url + PODS) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert len((await response.json())["items"]) == 40
        create_pods(api, 1, namespace="small")
        _, listed = await http.get("/api/v1/namespaces/small/pods")
        assert len(listed["items"]) == 1
