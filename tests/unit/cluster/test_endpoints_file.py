"""Pods from a file: what may stand in it, and how changes are followed."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from pdrouter.cluster.endpoints_file import NAMESPACE, UNRESOLVED, EndpointsFile, create_pods
from pdrouter.cluster.endpoints_text import EndpointsInvalid, parse_endpoints
from pdrouter.cluster.host_names import HostNames
from pdrouter.cluster.pods import UNSAID_PORT, PairingKey, Pod, Role
from pdrouter.cluster.view import ClusterView, PodCache

WIRES = {"vllm": ("nixl", "shfs"), "sglang": ()}

AIBRIX_EXAMPLE = """
models:
  - name: llama31-8b
    engine: vllm
    rolesets:
      - name: rs0
        prefill: ["127.0.0.1:9001", "127.0.0.1:9003"]
        decode: ["127.0.0.1:9002"]
      - name: rs1
        prefill: ["[fd00::1]:8000"]
        decode: ["[fd00::2]:8000"]
  - name: small
    endpoints: ["10.0.0.9:8000"]
"""


def parse(text: str, **addresses: tuple[str, ...]) -> tuple[Pod, ...]:
    return create_pods(parse_endpoints(text, WIRES), addresses)


def find_problem(text: str) -> str:
    with pytest.raises(EndpointsInvalid) as caught:
        parse(text)
    return str(caught.value)


def dump(*models: Any) -> str:
    return yaml.safe_dump({"models": list(models)})


def list_engines(*engines: Any) -> str:
    return dump({"name": "m", "endpoints": list(engines)})


def test_ranks_behind_one_port_are_counted_by_the_file() -> None:
    engine = {"address": "10.0.0.1:8000", "data_parallel_size": 2}
    pods = parse(list_engines(engine, "10.0.0.2:8000"))
    assert [(pod.uid, pod.address, pod.number) for pod in pods] == [
        ("10.0.0.1:8000#0", "10.0.0.1:8000", 0),
        ("10.0.0.1:8000#1", "10.0.0.1:8000", 1),
        ("10.0.0.2:8000", "10.0.0.2:8000", None),
    ]
    assert [pod.name for pod in pods[:2]] == ["m-10-0-0-1-0#0", "m-10-0-0-1-0#1"]


@pytest.mark.parametrize("host", ["10.0.0.1", "[fd00::1]"])
def test_ranks_with_ports_of_their_own_are_a_range(host: str) -> None:
    pods = parse(list_engines(f"{host}:8000-8002"))
    addresses = [f"{host}:{port}" for port in (8000, 8001, 8002)]
    assert [pod.address for pod in pods] == [pod.uid for pod in pods] == addresses
    assert len({pod.name for pod in pods}) == 3


def test_a_host_name_may_have_a_range_and_a_dash() -> None:
    pods = parse(list_engines("my-host-1:8000-8001"), **{"my-host-1": ("10.0.0.1", "10.0.0.2")})
    assert len({pod.address for pod in pods}) == 4
    (pod,) = parse(list_engines("my-host-1:8000"), **{"my-host-1": ("10.0.0.1",)})
    assert pod.address == "10.0.0.1:8000"


LISTED = [{"number": 8000}, {"number": 8001}]


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1", "[fd00::1]", "engine.example"])
def test_ports_may_be_listed_as_in_an_inference_pool(host: str) -> None:
    names = {"engine.example": ("10.0.0.1",)}
    pods = parse(list_engines({"address": host, "targetPorts": LISTED}), **names)
    ip = "[fd00::1]" if "fd00" in host else "10.0.0.1"
    assert [pod.address for pod in pods] == [f"{ip}:8000", f"{ip}:8001"]
    assert pods == parse(list_engines(f"{host if 'e' in host else ip}:8000-8001"), **names)


def test_ports_that_a_model_lists_are_those_of_engines_without_any() -> None:
    engines = ["10.0.0.1", "10.0.0.2:9000", {"address": "10.0.0.3", "targetPorts": LISTED[1:]}]
    pods = parse(dump({"name": "m", "targetPorts": LISTED, "endpoints": engines}))
    assert [pod.address for pod in pods] == [
        *("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:9000", "10.0.0.3:8001")
    ]


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("10.0.0.1", "has no port"),
        ({"address": "10.0.0.1", "targetPorts": []}, "'targetPorts': there must be some"),
        ({"address": "10.0.0.1", "targetPorts": 8000}, "'targetPorts' must be a list"),
        ({"address": "10.0.0.1", "targetPorts": [8000]}, "a target port must be written as keys"),
        ({"address": "10.0.0.1", "targetPorts": [{"number": "8-9"}]}, "must be from 1 to 65535"),
        ({"address": "10.0.0.1", "targetPorts": [{"number": 70000}]}, "from 1 to 65535"),
        ({"address": "10.0.0.1", "targetPorts": LISTED * 2}, "one is there twice"),
        ({"address": "10.0.0.1:8000", "targetPorts": LISTED}, "or in the address, not both"),
        ({"address": "10.0.0.1:8000-8002", "targetPorts": LISTED}, "not both"),
        ({"address": "10.0.0.1", "targetPorts": LISTED, "data_parallel_size": 2}, "of their own"),
        ({"address": "no:host:no", "targetPorts": LISTED}, "neither an IP address nor"),
    ],
)
def test_lists_of_ports_that_cannot_be_are_told(engine: Any, problem: str) -> None:
    assert problem in find_problem(list_engines(engine))


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ({"address": "10.0.0.1:8000", "data_parallel_size": "many"}, "data-parallel size 'many'"),
        ({"address": "10.0.0.1:8000", "data_parallel_size": 0}, "data-parallel size '0'"),
        ({"address": "10.0.0.1:8000-8001", "data_parallel_size": 2}, "ports of their own, or"),
        ("10.0.0.1:8001-8000", "ports '8001-8000'"),
        ("10.0.0.1:8000-x", "must be like 8000,8001 or 8000-8003"),
        ("10.0.0.999:8000-8001", "10.0.0.999"),
    ],
)
def test_ranks_that_cannot_be_are_told(engine: Any, problem: str) -> None:
    assert problem in find_problem(list_engines(engine))


def test_a_port_of_a_range_is_listed_once() -> None:
    problem = find_problem(list_engines("10.0.0.1:8000-8002", "10.0.0.1:8001"))
    assert "10.0.0.1:8001 is listed twice" in problem


def test_the_file_of_aibrix_is_understood() -> None:
    pods = parse(AIBRIX_EXAMPLE)
    assert [(pod.model, pod.role, pod.roleset, pod.address) for pod in pods] == [
        ("llama31-8b", Role.PREFILL, "rs0", "127.0.0.1:9001"),
        ("llama31-8b", Role.PREFILL, "rs0", "127.0.0.1:9003"),
        ("llama31-8b", Role.DECODE, "rs0", "127.0.0.1:9002"),
        ("llama31-8b", Role.PREFILL, "rs1", "[fd00::1]:8000"),
        ("llama31-8b", Role.DECODE, "rs1", "[fd00::2]:8000"),
        ("small", Role.BOTH, "", "10.0.0.9:8000"),
    ]
    first = pods[0]
    assert (first.namespace, first.engine, first.kv_connector, first.ready) == (
        NAMESPACE,
        "vllm",
        None,
        True,
    )
    assert first.uid == "127.0.0.1:9001"
    assert first.pairing == PairingKey(NAMESPACE, "rs0", "vllm")


def test_pods_are_named_after_model_and_address() -> None:
    names = [pod.name for pod in parse(AIBRIX_EXAMPLE)]
    assert names[0] == "llama31-8b-127-0-0-1-0"
    assert names[3] == "llama31-8b-fd00-1-3"
    assert len(set(names)) == len(names)


def test_a_name_that_is_no_dns_name_gives_a_pod_name_that_is() -> None:
    pods = parse(dump({"name": "org/Model_7B.äö", "endpoints": ["10.0.0.1:80"]}))
    assert pods[0].model == "org/Model_7B.äö"
    assert pods[0].name == "org-model-7b-10-0-0-1-0"


def test_engine_and_connector_may_be_chosen() -> None:
    model = {"name": "m", "engine": "sglang", "kv_connector": "shfs", "endpoints": ["10.0.0.1:80"]}
    pod = parse(dump(model))[0]
    assert (pod.engine, pod.kv_connector) == ("sglang", "shfs")


def test_a_model_may_have_rolesets_and_endpoints() -> None:
    rolesets = [{"name": "a", "decode": ["10.0.0.1:80"]}]
    pods = parse(dump({"name": "m", "rolesets": rolesets, "endpoints": ["10.0.0.2:80"]}))
    assert {pod.role for pod in pods} == {Role.DECODE, Role.BOTH}


def test_a_roleset_may_have_engines_that_encode() -> None:
    engines = {str(role): [f"10.0.0.{number}:80"] for number, role in enumerate(_LEGS)}
    roleset = {"name": "a", **engines}
    pods = parse(dump({"name": "m", "rolesets": [roleset]}))
    assert {(pod.role, pod.roleset) for pod in pods} == {(role, "a") for role in _LEGS}
    twice = dump({"name": "m", "rolesets": [{**roleset, "encode": engines["decode"]}]})
    assert "is listed twice" in find_problem(twice)


def test_two_models_at_one_address_share_their_load() -> None:
    pods = parse(
        dump(
            {"name": "m1", "endpoints": ["10.0.0.1:80"]},
            {"name": "m2", "endpoints": ["10.0.0.1:80"]},
        )
    )
    assert pods[0].uid == pods[1].uid
    assert pods[0].model != pods[1].model


def test_the_spelling_of_an_address_does_not_make_another_pod_of_it() -> None:
    long = parse(dump({"name": "m", "endpoints": ["[0:0:0:0:0:0:0:1]:08000"]}))
    assert long[0].uid == parse(dump({"name": "m", "endpoints": ["[::1]:8000"]}))[0].uid


def test_there_may_be_no_models() -> None:
    assert parse("models: []") == ()


@pytest.mark.parametrize("name", ["70", "1.5", "on", "2024-99-99", "2024-01-01", "'7'"])
def test_a_name_needs_no_quotes(name: str) -> None:
    (pod,) = parse(f"models: [{{name: {name}, endpoints: ['10.0.0.1:80']}}]")
    assert pod.model == name.strip("'")


def test_what_models_have_in_common_may_be_merged() -> None:
    pods = parse("""
models:
  - &first
    name: a
    engine: sglang
    endpoints: ["10.0.0.1:80"]
  - <<: *first
    name: b
  - <<: [{engine: vllm}, *first]
    name: c
""")
    assert [(pod.model, pod.engine, pod.address) for pod in pods] == [
        ("a", "sglang", "10.0.0.1:80"),
        ("b", "sglang", "10.0.0.1:80"),
        ("c", "vllm", "10.0.0.1:80"),
    ]


_LEGS = (Role.ENCODE, Role.PREFILL, Role.DECODE)
_ROLESET = {"name": "r", "prefill": ["10.0.0.1:80"]}
_BROKEN: list[tuple[str, str]] = [
    ("", "it is empty: it must have the key 'models'"),
    ("just text", "line 1: the file must be written as keys (models), not as 'just text'"),
    ("[]", "line 1: the file must be written as keys (models), not as a list"),
    ("models:", "line 1: 'models' must be a list, but this is nothing"),
    ("models: 3", "line 1: 'models' must be a list, but this is '3'"),
    ("{}", "line 1: the file lacks the key 'models'"),
    ("models: []\nversion: 1", "line 2: unknown key 'version' of the file: known are models"),
    ("model: []", "line 1: unknown key 'model' of the file: did you mean 'models'?"),
    ("models: []\nmodels: []", "line 2: key 'models' occurs twice, the first time in line 1"),
    ("models: [", "not valid YAML"),
    ("models: \t[]", "not valid YAML"),
    ("a: 1\n  b: 2", "not valid YAML"),
    ("models: []\n---\nmodels: []", "not valid YAML"),
    ("models: !!python/name:os.system", "must be a list, but this is python/name"),
    ("models: [{name: !!python/name:os.system }]", "must be a text, but this is python/name"),
    ("models: " + "[" * 5000, "not valid YAML"),
    ("models: &a [*a]", "a model must be written as keys"),
    ("&a {<<: *a}", "contains itself"),
    ("{1: 2}", "unknown key '1'"),
    ("{[a]: 2}", "unknown key 'a list'"),
    (dump({}), "line 2: a model lacks the key 'name'"),
    (dump({"name": None, "endpoints": ["10.0.0.1:80"]}), "must be a text, but this is nothing"),
    (dump({"name": ["m"], "endpoints": ["10.0.0.1:80"]}), "must be a text, but this is a list"),
    (dump({"name": "", "endpoints": ["10.0.0.1:80"]}), "the name of a model is empty"),
    (dump({"name": "m"}), "'m' has neither 'rolesets' nor 'endpoints'"),
    (dump({"name": "m", "rolesets": [{"name": "r"}]}), "roleset 'r' has no addresses"),
    (dump({"name": "m", "rolesets": [{"prefill": []}]}), "a roleset lacks the key 'name'"),
    (dump({"name": "m", "rolesets": [{**_ROLESET, "both": []}]}), "unknown key 'both'"),
    (dump({"name": "m", "rolesets": [{**_ROLESET, "decoder": []}]}), "did you mean 'decode'?"),
    (dump({"name": "m", "rolesets": [_ROLESET, _ROLESET]}), "the roleset name 'r' occurs twice"),
    (
        dump({"name": "m", "rolesets": [{**_ROLESET, "decode": "10.0.0.2:80"}]}),
        "'decode' must be a list, but this is '10.0.0.2:80'",
    ),
    (dump({"name": "m", "endpoint": ["10.0.0.1:80"]}), "did you mean 'endpoints'?"),
    (dump({"name": "m", "endpoints": [80]}), "'80' has no port"),
    (dump({"name": "m", "endpoints": [{"10.0.0.1": 80}]}), "unknown key '10.0.0.1' of an engine"),
    (dump({"name": "m", "endpoints": ["http://engine:80"]}), "without a scheme"),
    (dump({"name": "m", "endpoints": ["10.0.0.1:0"]}), "port must be from 1 to 65535"),
    (dump({"name": "m", "endpoints": ["::1:80"]}), "stands in brackets"),
    (dump({"name": "m", "endpoints": ["10.0.0.1:80"] * 2}), "10.0.0.1:80 is listed twice"),
    (
        "models:\n- name: m\n  endpoints:\n  - 10.0.0.1:80\n  - 10.0.0.1:080",
        "line 5: 10.0.0.1:80 is listed twice, the first time in line 4",
    ),
    (
        dump({"name": "m", "rolesets": [{**_ROLESET, "decode": ["10.0.0.1:80"]}]}),
        "10.0.0.1:80 is listed twice",
    ),
    (dump({"name": "m", "engine": 1, "endpoint": ["10.0.0.1:80"]}), "did you mean 'endpoints'?"),
    (
        dump(*({"name": "m", "endpoints": [f"10.0.0.{n}:80"]} for n in (1, 2))),
        "the model name 'm' occurs twice",
    ),
]


@pytest.mark.parametrize(("text", "message"), _BROKEN)
def test_a_broken_file_is_refused_with_the_place_and_the_reason(text: str, message: str) -> None:
    problem = find_problem(text)
    assert message in problem
    assert "\n" not in problem


def test_all_that_is_wrong_is_said_with_its_line() -> None:
    problem = find_problem("""models:
- nam: a
  endpoints: [10.0.0.1]
- name: b
  rolesets:
  - name: r
    prefil: ["10.0.0.1:8000"]
    decode: ["10.0.0.2:8000"]
    decode: ["10.0.0.3:8000"]
""")
    assert problem.split("; ") == [
        "line 2: unknown key 'nam' of a model: did you mean 'name'?",
        "line 3: '10.0.0.1' has no port: it must be host:port",
        "line 7: unknown key 'prefil' of a roleset: did you mean 'prefill'?",
        "line 9: key 'decode' occurs twice, the first time in line 8",
    ]


def test_a_long_list_of_problems_is_cut() -> None:
    problem = find_problem("models: []\n" + "\n".join(f"bad{n}: 1" for n in range(27)))
    assert problem.endswith("; and 7 more")
    assert problem.count("unknown key") == 20


@pytest.mark.parametrize(
    ("roleset", "remark"),
    [
        (_ROLESET, "line 4: roleset 'r' of model 'm' has no 'decode'"),
        ({**_ROLESET, "decode": []}, "has no 'decode': its prefill engines get no requests"),
        ({"name": "r", "decode": ["10.0.0.1:80"]}, "has no 'prefill': its engines serve requests"),
        ({"name": "r", "prefill": [], "decode": ["10.0.0.1:80"]}, None),
        ({**_ROLESET, "decode": ["10.0.0.2:80"]}, None),
        ({"name": "r", "encode": ["10.0.0.1:80"]}, "has 'encode' alone: its engines get no"),
        ({"name": "r", "encode": ["10.0.0.1:80"], "decode": ["10.0.0.2:80"], "prefill": []}, None),
    ],
)
def test_a_roleset_that_lacks_a_role_is_remarked(
    roleset: dict[str, Any], remark: str | None
) -> None:
    model = {"endpoints": [], "rolesets": [roleset], "name": "m"}
    text = yaml.safe_dump({"models": [model]}, sort_keys=False)
    remarks = parse_endpoints(text, WIRES).remarks
    assert len(remarks) == (0 if remark is None else 1)
    assert remark is None or remark in remarks[0]


def engine(address: str, **members: str) -> dict[str, str]:
    return {"address": address, **members}


def test_an_engine_may_say_its_version_and_its_zone() -> None:
    roleset = {
        "name": "r",
        "prefill": [engine("10.0.0.1:80", revision="v1", zone="a"), "10.0.0.2:80"],
        "decode": [engine("10.0.0.3:80", revision="v1"), "10.0.0.4:80"],
    }
    text = dump({"name": "m", "rolesets": [roleset], "endpoints": [engine("10.0.0.5:80")]})
    pods = parse(text)
    said = {pod.address: (pod.revision, pod.places) for pod in pods}
    assert said["10.0.0.1:80"] == ("v1", ("a",))
    assert said["10.0.0.2:80"] == ("", ())
    view = ClusterView.build(pods).models["m"]
    partners = {
        prefill.address: [pod.address for pod in view.decode[prefill.pairing]]
        for prefill in view.prefill
    }
    assert partners == {"10.0.0.1:80": ["10.0.0.3:80"], "10.0.0.2:80": ["10.0.0.4:80"]}
    endpoints = parse_endpoints(text, WIRES)
    assert not endpoints.remarks
    mixed = ClusterView.build(create_pods(endpoints, {}, match_revisions=False)).models["m"]
    assert len(mixed.partners) == len(mixed.prefill) == 2
    assert len(mixed.decode) == 1


def test_a_version_that_one_role_lacks_is_remarked() -> None:
    roleset = {
        "name": "r",
        "prefill": [engine("10.0.0.1:80", revision="v1")],
        "decode": [engine("10.0.0.2:80", revision="v1"), "10.0.0.3:80"],
    }
    (remark,) = parse_endpoints(dump({"name": "m", "rolesets": [roleset]}), WIRES).remarks
    assert "has engines of one role only of no revision: they form no pairs" in remark


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"adress": "10.0.0.1:80"}, "unknown key 'adress' of an engine: did you mean 'address'?"),
        ({"revision": "v1"}, "an engine lacks the key 'address'"),
        (engine("10.0.0.1:80", zone=""), "'zone' is empty"),
        (engine("10.0.0.1"), "'10.0.0.1' has no port"),
    ],
)
def test_an_engine_that_is_not_written_well_is_refused(item: dict[str, str], reason: str) -> None:
    assert reason in find_problem(dump({"name": "m", "endpoints": [item]}))


_WHOLE = {"endpoints": ["10.0.0.1:80"]}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"engine": "tgi"}, "engine 'tgi' is not supported: it is none of vllm, sglang"),
        ({"engine": "sglan"}, "engine 'sglan' is not supported: did you mean 'sglang'?"),
        ({"kv_connector": "nixel"}, "KV connector 'nixel' is not supported: did you mean 'nixl'?"),
        ({"engine": "x" * 900}, f"engine '{'x' * 65} is not supported"),
    ],
)
def test_a_model_that_cannot_be_served_is_left_out_and_the_others_are_served(
    members: dict[str, Any], reason: str
) -> None:
    text = dump({"name": "odd", **members, **_WHOLE}, {"name": "m", **_WHOLE})
    (left_out,) = parse_endpoints(text, WIRES).left_out
    assert left_out.startswith(f"line 2: model 'odd' is left out: {reason}")
    odd, served = parse(text)
    assert (odd.ready, odd.state, odd.obstacle) == (False, "unsupported", odd.unsupported)
    assert odd.unsupported.startswith(reason)
    assert served.ready
    view = ClusterView.build((odd, served))
    assert view.names == ("m",)
    assert view.left_out == {"odd": odd.unsupported}


# --- Host names ---


def test_each_address_of_a_host_name_is_a_pod() -> None:
    model = {"name": "m", "rolesets": [{"name": "r", "prefill": ["p:1"], "decode": ["D:2"]}]}
    pods = parse(dump(model), p=("10.0.0.1", "10.0.0.2"), d=("fd00::1",))
    assert [(pod.uid, pod.role, pod.ready) for pod in pods] == [
        ("10.0.0.1:1", Role.PREFILL, True),
        ("10.0.0.2:1", Role.PREFILL, True),
        ("[fd00::1]:2", Role.DECODE, True),
    ]
    assert [pod.name for pod in pods] == ["m-p-10-0-0-1-0", "m-p-10-0-0-2-0", "m-d-fd00-1-1"]


def test_a_host_name_without_an_address_is_a_pod_that_is_not_ready() -> None:
    (pod,) = parse(dump({"name": "m", "endpoints": ["engine:80"]}))
    assert (pod.uid, pod.name, pod.ready, pod.obstacle) == (
        *("engine:80", "m-engine-0"),
        *(False, UNRESOLVED),
    )


def test_two_names_of_an_address_are_one_pod() -> None:
    pods = parse(dump({"name": "m", "endpoints": ["a:1", "b:1"]}), a=("10.0.0.1",), b=("10.0.0.1",))
    assert [pod.name for pod in pods] == ["m-a-10-0-0-1-0"]


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text("models:[]{}-!&*|>'\"#%@`0123.~ \n", max_size=30).map(
            lambda text: "models: " + text
        ),
    )
)
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse(text)
    except EndpointsInvalid as error:
        assert str(error)  # noqa: PT017 - most texts are refused, not all


# --- Following the file ---

POLL_S = 0.005


def one_pod(address: str) -> str:
    return dump({"name": "m", "endpoints": [address]})


class Source:
    """A file in a directory, a cache, and what was reported about reading it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cache = PodCache()
        self.reloads: list[bool] = []
        self.file = EndpointsFile(
            path,
            self.cache,
            wires=WIRES,
            poll_interval_s=POLL_S,
            on_reload=self.reloads.append,
        )

    @property
    def addresses(self) -> list[str]:
        return [pod.address for pod in self.cache.view.pods]

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.file.watch())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])


def write(path: Path, text: str) -> None:
    """Replace a file at once, as editors and `kubectl cp` do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "endpoints.yaml")


async def test_the_file_is_loaded(source: Source) -> None:
    source.path.write_text(AIBRIX_EXAMPLE)
    async with source.file as entered:
        assert entered is source.file
    assert len(source.addresses) == 6
    assert source.cache.synced
    assert source.reloads == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"models: [\xff]", "utf-8"),
        (b"models: [", "not valid YAML"),
        (b"models: 1", "must be a list"),
    ],
)
async def test_a_file_that_cannot_be_loaded_is_named_and_changes_nothing(
    source: Source, content: bytes | None, message: str
) -> None:
    if content is not None:
        source.path.write_bytes(content)
    with pytest.raises(EndpointsInvalid, match=message) as caught:
        await source.file.load()
    assert str(source.path) in str(caught.value)
    assert not source.cache.synced


async def test_a_directory_is_no_endpoints_file(tmp_path: Path) -> None:
    with pytest.raises(EndpointsInvalid):
        await Source(tmp_path).file.load()


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)


def remove_and_write(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("change", [write, overwrite, remove_and_write])
async def test_changes_are_followed(source: Source, change: Callable[[Path, str], None]) -> None:
    source.path.write_text(one_pod("10.0.0.1:80"))
    await source.file.load()
    async with source.watching():
        change(source.path, one_pod("10.0.0.22:80"))
        await wait_until(lambda: source.addresses == ["10.0.0.22:80"])
        change(source.path, one_pod("10.0.0.3:80"))
        await wait_until(lambda: source.addresses == ["10.0.0.3:80"])
    assert source.reloads[-1]


async def test_a_file_that_does_not_change_is_read_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.path.write_text(one_pod("10.0.0.1:80"))
    await source.file.load()
    looks = 0
    identify = source.file._identify

    def count_looks() -> object:
        nonlocal looks
        looks += 1
        return identify()

    monkeypatch.setattr(source.file, "_identify", count_looks)
    async with source.watching():
        await wait_until(lambda: looks >= 5)
    assert source.reloads == []


@pytest.mark.parametrize("broken", ["models: [", "models: [{nmae: m}]", ""])
async def test_a_broken_file_keeps_the_last_good_pods_and_is_reported_once(
    source: Source, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    source.path.write_text(one_pod("10.0.0.1:80"))
    await source.file.load()
    async with source.watching():
        write(source.path, broken)
        await wait_until(lambda: source.reloads == [False])
        await asyncio.sleep(5 * POLL_S)
        assert source.reloads == [False]
        assert source.addresses == ["10.0.0.1:80"]
        write(source.path, one_pod("10.0.0.2:80"))
        await wait_until(lambda: source.addresses == ["10.0.0.2:80"])
    assert source.reloads == [False, True]
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(messages) == 1
    assert "the last good one stays in use" in messages[0]
    assert str(source.path) in messages[0]


async def test_a_model_that_cannot_be_served_stops_neither_the_start_nor_a_reload(
    source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"name": "odd", "engine": "tgi", "endpoints": ["10.0.0.9:80"]}
    source.path.write_text(dump(odd, {"name": "m", "endpoints": ["10.0.0.1:80"]}))
    await source.file.load()
    assert source.cache.view.names == ("m",)
    async with source.watching():
        write(source.path, dump({"name": "m", "endpoints": ["10.0.0.2:80"]}, odd))
        await wait_until(lambda: bool(source.reloads))
    assert source.reloads == [True]
    assert source.addresses == ["10.0.0.2:80", "10.0.0.9:80"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert all(str(source.path) in error and "'odd' is left out" in error for error in errors)


async def test_a_file_that_is_removed_keeps_the_last_good_pods(source: Source) -> None:
    source.path.write_text(one_pod("10.0.0.1:80"))
    await source.file.load()
    async with source.watching():
        source.path.unlink()
        await wait_until(lambda: source.reloads == [False])
        assert source.addresses == ["10.0.0.1:80"]


async def test_a_file_that_was_broken_at_first_is_read_when_it_is_mended(source: Source) -> None:
    with pytest.raises(EndpointsInvalid):
        await source.file.load()
    async with source.watching():
        write(source.path, one_pod("10.0.0.1:80"))
        await wait_until(lambda: source.cache.synced)
    assert source.reloads == [True]


async def test_a_mounted_configmap_is_followed(tmp_path: Path) -> None:
    """The kubelet writes a new directory and swaps the symbolic link that leads to it."""

    def publish(version: str, text: str) -> None:
        directory = tmp_path / f"..{version}"
        directory.mkdir()
        (directory / "endpoints.yaml").write_text(text)
        # Even a file of the same size and age counts as another one.
        os.utime(directory / "endpoints.yaml", (1_700_000_000, 1_700_000_000))
        link = tmp_path / "..data_tmp"
        link.symlink_to(directory.name)
        link.replace(tmp_path / "..data")

    source = Source(tmp_path / "endpoints.yaml")
    publish("v1", one_pod("10.0.0.1:80"))
    source.path.symlink_to("..data/endpoints.yaml")
    await source.file.load()
    async with source.watching():
        publish("v2", one_pod("10.0.0.2:80"))
        await wait_until(lambda: source.addresses == ["10.0.0.2:80"])
    assert source.reloads == [True]


async def test_host_names_are_resolved_at_each_look(source: Source) -> None:
    known: dict[str, tuple[str, ...]] = {"a": ("10.0.0.1",), "b": ("10.0.0.9",)}

    def resolve(name: str) -> tuple[str, ...]:
        if name not in known:
            raise OSError("Name or service not known")
        return known[name]

    source.file = EndpointsFile(
        source.path,
        source.cache,
        wires=WIRES,
        poll_interval_s=POLL_S,
        on_reload=source.reloads.append,
        names=HostNames(resolve),
    )
    source.path.write_text(dump({"name": "m", "endpoints": ["a:1", "b:2"]}))
    await source.file.load()
    assert source.addresses == ["10.0.0.1:1", "10.0.0.9:2"]
    async with source.watching():
        known["a"] = ("10.0.0.2", "10.0.0.3")
        await wait_until(lambda: source.addresses == ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.9:2"])
        # What cannot be resolved keeps its last addresses; others are followed meanwhile.
        del known["a"]
        known["b"] = ("10.0.0.8",)
        await wait_until(lambda: source.addresses == ["10.0.0.2:1", "10.0.0.3:1", "10.0.0.8:2"])
        view = source.cache.view
        await asyncio.sleep(5 * POLL_S)
        assert source.cache.view is view
    assert source.reloads == []


@pytest.mark.parametrize(
    ("of_model", "of_engine", "port"),
    [
        (..., ..., UNSAID_PORT),
        (9000, ..., 9000),
        (9000, 9001, 9001),
        (..., 9001, 9001),
        (9000, None, None),
        (None, ..., None),
        (None, 9001, 9001),
        ("9000", ..., 9000),
    ],
)
def test_a_bootstrap_port_is_the_engines_or_the_models(
    of_model: Any, of_engine: Any, port: int | None
) -> None:
    engine = {"address": "10.0.0.1:80", "bootstrap_port": of_engine}
    model = {"name": "m", "engine": "sglang", "bootstrap_port": of_model}
    for members in (engine, model):
        if members["bootstrap_port"] is ...:
            del members["bootstrap_port"]
    (pod,) = parse(dump({**model, "endpoints": [engine]}))
    assert pod.bootstrap_port == port


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8998.5", "x", "[1]", "{}", "", "'null'"])
def test_a_bootstrap_port_that_is_none_is_said(port: str) -> None:
    text = f"models: [{{name: m, endpoints: ['10.0.0.1:80'], bootstrap_port: {port}}}]"
    assert "'bootstrap_port'" in find_problem(text)
