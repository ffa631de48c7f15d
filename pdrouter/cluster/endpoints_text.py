"""What may stand in an endpoints file, and what it means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yaml.nodes import MappingNode, Node

from pdrouter.cluster.pods import (
    UNSAID_PORT,
    Role,
    Wires,
    find_unsupported,
    format_address,
    is_ip,
    parse_address,
)
from pdrouter.cluster.ranks import (
    ONE_RANK,
    Ranks,
    RanksInvalid,
    check_ports,
    parse_ports,
    parse_size,
)
from pdrouter.cluster.source import SourceUnusable
from pdrouter.cluster.yaml_lines import YamlInvalid, YamlReader, compose, is_null, line_of

FILE_KEYS = ("models",)
TARGET_PORTS = "targetPorts"
"""As an InferencePool says it: each of these ports of an engine is an endpoint of its own."""
MODEL_KEYS = (
    *("name", "engine", "kv_connector", "bootstrap_port", TARGET_PORTS, "rolesets", "endpoints"),
)
ROLESET_KEYS = ("name", "encode", "prefill", "decode")
ENDPOINT_KEYS = (
    *("address", TARGET_PORTS, "revision", "zone", "data_parallel_size", "bootstrap_port"),
)

_PORT = re.compile("[1-9][0-9]{0,4}")
_SHOWN = 20


class EndpointsInvalid(SourceUnusable):
    """The file cannot be read, or does not say what pods there are."""


@dataclass(frozen=True, slots=True)
class EndpointLine:
    """One line of the file.

    Attributes:
        model: name of the model.
        role: what is asked of the engine.
        roleset: name of the group within which pairs are formed; empty for none.
        engine: the software.
        kv_connector: name of its KV connector; None for the configured default.
        host: IP address, or a name to resolve.
        port: port.
        unsupported: why the router cannot speak to it, for people; empty if it can.
        revision: its version; empty if none is said.
        zone: where it is; empty if that is not said.
        ranks: its data-parallel ranks.
        bootstrap_port: port at which other engines meet it; None for their own default.
    """

    model: str
    role: Role
    roleset: str
    engine: str
    kv_connector: str | None
    host: str
    port: int
    unsupported: str = ""
    revision: str = ""
    zone: str = ""
    ranks: Ranks = ONE_RANK
    bootstrap_port: int | None = UNSAID_PORT

    @property
    def named(self) -> bool:
        """Whether the host is a name."""
        return not is_ip(self.host)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a file says.

    Attributes:
        endpoints: all of them, in the order of the file.
        remarks: what is allowed, but hardly meant.
        left_out: which models cannot be served, and why.
    """

    endpoints: tuple[EndpointLine, ...]
    remarks: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def host_names(self) -> frozenset[str]:
        """The names that must be resolved."""
        return frozenset(each.host for each in self.endpoints if each.named)


def parse_endpoints(text: str, wires: Wires) -> Endpoints:
    """Return what an endpoints file says.

    Args:
        text: YAML in the format of aibrix, with `kv_connector`, `revision`, `zone` and others
            beside it.
        wires: engines and connectors that the router can speak to.

    Raises:
        EndpointsInvalid: the text is not such a file; the message says where and why.
    """
    try:
        root = compose(text)
        if root is None:
            raise EndpointsInvalid("it is empty: it must have the key 'models'")
        return _Parser(wires).read(root)
    except YamlInvalid as error:
        raise EndpointsInvalid(str(error)) from None
    except RecursionError:
        raise EndpointsInvalid("it is nested too deeply, or contains itself") from None


class _Parser:
    """Reads one file."""

    def __init__(self, wires: Wires) -> None:
        self._yaml = YamlReader()
        self._wires = wires
        self._endpoints: list[EndpointLine] = []
        self._remarks: list[str] = []
        self._left_out: list[str] = []

    def read(self, root: Node) -> Endpoints:
        """Return what the file says.

        Raises:
            EndpointsInvalid: anything is wrong with it.
        """
        members = self._yaml.members(root, "the file", FILE_KEYS, FILE_KEYS)
        names: set[str] = set()
        for node in self._read_list(members, "models"):
            self._read_model(node, names)
        problems = self._yaml.problems
        if problems:
            more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            raise EndpointsInvalid("; ".join([*problems[:_SHOWN], *more]))
        return Endpoints(tuple(self._endpoints), tuple(self._remarks), tuple(self._left_out))

    def _read_model(self, node: Node, names: set[str]) -> None:
        members = self._yaml.members(node, "a model", MODEL_KEYS, ("name",))
        name = self._read_name(members, "model", names)
        engine = self._read_word(members, "engine") or next(iter(self._wires))
        connector = self._read_word(members, "kv_connector")
        unsupported = find_unsupported(engine, connector, self._wires)
        if unsupported:
            self._left_out.append(
                f"line {line_of(node)}: model {name!r} is left out: {unsupported}"
            )
        port = self._read_port(members, UNSAID_PORT)
        ports = self._read_target_ports(members)
        model = _Model(name, engine, connector, unsupported, port, ports, {})
        if members and not {"rolesets", "endpoints"} & members.keys():
            self._yaml.refuse(node, f"model {model.name!r} has neither 'rolesets' nor 'endpoints'")
        for address in self._read_list(members, "endpoints"):
            self._read_endpoint(model, Role.BOTH, "", address)
        rolesets: set[str] = set()
        for roleset in self._read_list(members, "rolesets"):
            self._read_roleset(model, roleset, rolesets)

    def _read_roleset(self, model: "_Model", node: Node, names: set[str]) -> None:
        members = self._yaml.members(node, "a roleset", ROLESET_KEYS, ("name",))
        name = self._read_name(members, "roleset", names)
        prefill = self._read_list(members, "prefill")
        decode = self._read_list(members, "decode")
        revisions = {
            role: {self._read_endpoint(model, role, name, address) for address in addresses}
            for role, addresses in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        }
        encode = self._read_list(members, "encode")
        for address in encode:
            self._read_endpoint(model, Role.ENCODE, name, address)
        where = f"line {line_of(node)}: roleset {name!r} of model {model.name!r}"
        if members and not (encode or prefill or decode):
            self._yaml.refuse(node, f"roleset {name!r} has no addresses")
        elif not (prefill or decode):
            self._remarks.append(f"{where} has 'encode' alone: its engines get no requests")
        elif not decode:
            self._remarks.append(f"{where} has no 'decode': its prefill engines get no requests")
        elif "prefill" not in members:
            # An empty list says that this is meant.
            self._remarks.append(f"{where} has no 'prefill': its engines serve requests whole")
        elif prefill:
            alone = revisions[Role.PREFILL] ^ revisions[Role.DECODE]
            self._remarks += (
                f"{where} has engines of one role only of {_name_revision(revision)}: "
                "they form no pairs"
                for revision in sorted(alone)
            )

    def _read_name(self, members: Mapping[str, Node], what: str, names: set[str]) -> str:
        """Return the name of one of several things, each of which has another one."""
        if "name" not in members:
            return ""
        name = self._yaml.text(members["name"], f"the name of a {what}")
        if name in names:
            self._yaml.refuse(members["name"], f"the {what} name {name!r} occurs twice")
        names.add(name)
        return name

    def _read_word(self, members: Mapping[str, Node], key: str) -> str | None:
        return (self._yaml.text(members[key], repr(key)) or None) if key in members else None

    def _read_port(self, members: Mapping[str, Node], default: int | None) -> int | None:
        """Return the bootstrap port, None for `null`; the default where it is not said."""
        node = members.get("bootstrap_port")
        if node is None:
            return default
        if is_null(node):
            return None
        text = self._yaml.text(node, "'bootstrap_port'")
        if _PORT.fullmatch(text) and int(text) < 65536:
            return int(text)
        if text.strip():
            self._yaml.refuse(node, "'bootstrap_port' must be from 1 to 65535, or null")
        return default

    def _read_target_ports(self, members: Mapping[str, Node]) -> tuple[int, ...]:
        """Return the ports of all ranks of an engine; none where they are not listed."""
        node = members.get(TARGET_PORTS)
        if node is None:
            return ()
        ports: list[str] = []
        for item in self._yaml.items(node, repr(TARGET_PORTS)):
            port = self._yaml.members(item, "a target port", ("number",), ("number",))
            ports += [self._yaml.text(each, "a port's number") for each in port.values()]
        numbers = [int(port) for port in ports if _PORT.fullmatch(port)]
        if len(numbers) < len(ports):
            self._yaml.refuse(node, f"{TARGET_PORTS!r}: a number must be from 1 to 65535")
            return ()
        try:
            return check_ports(numbers)
        except RanksInvalid as invalid:
            self._yaml.refuse(node, f"{TARGET_PORTS!r}: {invalid}")
            return ()

    def _read_list(self, members: Mapping[str, Node], key: str) -> Sequence[Node]:
        return self._yaml.items(members[key], repr(key)) if key in members else ()

    def _read_endpoint(self, model: "_Model", role: Role, roleset: str, node: Node) -> str:
        """Add an engine, and return its revision."""
        members: Mapping[str, Node] = {"address": node}
        if isinstance(node, MappingNode):
            members = self._yaml.members(node, "an engine", ENDPOINT_KEYS, ("address",))
        revision, zone = (self._read_word(members, key) or "" for key in ("revision", "zone"))
        size = self._read_word(members, "data_parallel_size")
        own_ports = self._read_target_ports(members)
        text = self._yaml.text(members["address"], "an address") if "address" in members else ""
        if not text:
            return revision
        try:
            host, ports = _read_ports(text, own_ports or model.ports)
            ranks = Ranks(ports, 1 if size is None else parse_size(size))
        except ValueError as error:
            self._yaml.refuse(node, str(error))
            return revision
        if len(ports) > 1 and size is not None:
            self._yaml.refuse(node, "ranks have ports of their own, or 'data_parallel_size'")
        if own_ports and ports != own_ports:
            self._yaml.refuse(node, f"ports stand in {TARGET_PORTS!r} or in the address, not both")
        for port in ports:
            address = format_address(host, port)
            if address in model.lines:
                before = model.lines[address]
                message = f"{address} is listed twice, the first time in line {before}"
                self._yaml.refuse(node, message)
            model.lines.setdefault(address, line_of(node))
        self._endpoints.append(
            EndpointLine(
                model.name,
                role,
                roleset,
                model.engine,
                model.kv_connector,
                host,
                ports[0],
                model.unsupported,
                revision,
                zone,
                ranks,
                self._read_port(members, model.bootstrap_port),
            )
        )
        return revision


@dataclass(frozen=True, slots=True)
class _Model:
    """What all endpoints of a model have in common.

    Attributes:
        name: its name.
        engine: the software.
        kv_connector: name of the KV connector; None for the configured default.
        unsupported: why the router cannot speak to its engines; empty if it can.
        bootstrap_port: port at which other engines meet its own, unless they name theirs.
        ports: those of engines whose addresses have none.
        lines: where each of its addresses was listed first.
    """

    name: str
    engine: str
    kv_connector: str | None
    unsupported: str
    bootstrap_port: int | None
    ports: tuple[int, ...]
    lines: dict[str, int]


def _read_ports(address: str, ports: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the host and the ports of `host:port`, or of `host:first-last`.

    Args:
        address: the text.
        ports: those of a host that stands alone; none where it must not.

    Raises:
        ValueError: the text is neither.
    """
    host = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    if ports and (is_ip(host) or ":" not in address):
        return parse_address(format_address(host, ports[0]))[0], ports
    before, _, last = address.rpartition("-")
    host, colon, first = before.rpartition(":")
    if not (colon and first.isdecimal()):
        host, port = parse_address(address)
        return host, (port,)
    ports = parse_ports(f"{first}-{last}")
    return parse_address(f"{host}:{first}")[0], ports


def _name_revision(revision: str) -> str:
    return f"revision {revision!r}" if revision else "no revision"
