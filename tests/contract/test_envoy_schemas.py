"""Our schemas against envoy-data-plane, which is generated from Envoy's own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import betterproto2
import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc_filter
from envoy_data_plane.envoy.service.ext_proc import v3 as service
from envoy_data_plane.envoy.type import v3 as envoy_type
from envoy_data_plane.google.protobuf import Any as PackedAny
from envoy_data_plane.google.protobuf import Struct
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.messages import BodyMode, HeaderMode, Phase

REPOSITORY = Path(__file__).parents[2]

FILES = (pb.DESCRIPTOR,)
MESSAGES = [
    nested
    for file in FILES
    for message in file.message_types_by_name.values()
    for nested in (message, *message.nested_types)
    if not nested.GetOptions().map_entry
]
FIELDS = [field for message in MESSAGES for field in message.fields]
ENUMS = [
    *(enum for file in FILES for enum in file.enum_types_by_name.values()),
    *(enum for message in MESSAGES for enum in message.enum_types),
]
TYPE_NAMES = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
}

KEPT_AS_BYTES = {
    "pdrouter.extproc.wire.HeaderMap.headers",
    "pdrouter.extproc.wire.ProcessingRequest.attributes",
    "pdrouter.extproc.wire.ProcessingRequest.protocol_config",
}
"""Messages to Envoy, and bytes to us: on the wire these are the same."""


def flat_name(full_name: str) -> str:
    """The name that envoy-data-plane gives a type: `CommonResponse.ResponseStatus` in one word."""
    name = full_name.rpartition("wire.")[2]
    # It writes abbreviations in small letters.
    return name.replace(".", "").replace("HTTP", "Http")


def envoys(full_name: str) -> Any:
    """Envoy's type of the same name."""
    name = flat_name(full_name)
    homes = [
        module
        for module in (*(service, ext_proc_filter, core, envoy_type),)
        if name in module.__all__
    ]
    assert len(homes) == 1, f"{name} is in {homes}"
    return getattr(homes[0], name)


def type_name_in_ours(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return flat_name(field.enum_type.full_name)
    if field.message_type is not None:
        return flat_name(field.message_type.full_name).removeprefix("googleprotobuf")
    return TYPE_NAMES[field.type]


def type_name_in_envoys(owner: Any, key: str, metadata: Any) -> str:
    if metadata.unwrap is not None:
        return str(metadata.unwrap().__name__)
    if metadata.proto_type in {"message", "enum"}:
        return str(owner._betterproto.cls_by_field[key].__name__)
    return str(metadata.proto_type)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.full_name)
def test_a_field_has_envoys_number_type_and_label(field: FieldDescriptor) -> None:
    assert field.containing_type is not None
    owner = envoys(field.containing_type.full_name)
    theirs = owner._betterproto.meta_by_field_name[field.name]

    assert field.number == theirs.number
    oneof = field.containing_oneof
    if field.full_name in KEPT_AS_BYTES and field.has_presence:
        # Whether a message is there is known; of bytes, only what is `optional` tells it, which
        # protobuf sees as one of one.
        assert theirs.optional
        assert oneof is not None
        assert len(oneof.fields) == 1
    else:
        assert (oneof.name if oneof is not None else None) == theirs.group

    if theirs.map_meta is not None:
        entry = field.message_type
        assert entry is not None
        assert entry.GetOptions().map_entry
        key, value = theirs.map_meta
        assert type_name_in_ours(entry.fields_by_name["key"]) == key.proto_type
        if field.full_name in KEPT_AS_BYTES:
            assert type_name_in_ours(entry.fields_by_name["value"]) == "bytes"
            assert value.proto_type == "message"
            return
        assert type_name_in_ours(entry.fields_by_name["value"]) == type_name_in_envoys(
            owner, f"{field.name}.value", value
        )
    else:
        assert field.is_repeated == theirs.repeated
        if field.full_name in KEPT_AS_BYTES:
            assert (TYPE_NAMES[field.type], theirs.proto_type) == ("bytes", "message")
            return
        assert TYPE_NAMES[field.type] == theirs.proto_type
        assert type_name_in_ours(field) == type_name_in_envoys(owner, field.name, theirs)


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.full_name)
def test_an_enum_has_envoys_numbers(enum: EnumDescriptor) -> None:
    theirs = {member.name: int(member) for member in envoys(enum.full_name)}
    ours = {value.name: value.number for value in enum.values}

    assert ours.items() <= theirs.items()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BodyMode, ext_proc_filter.ProcessingModeBodySendMode),
        (HeaderMode, ext_proc_filter.ProcessingModeHeaderSendMode),
    ],
)
def test_a_mode_has_envoys_members(ours: Any, theirs: Any) -> None:
    assert {mode.name: int(mode) for mode in ours} == {mode.name: int(mode) for mode in theirs}


def test_there_is_a_phase_for_every_message_envoy_can_send() -> None:
    request: Any = service.ProcessingRequest
    kinds = request._betterproto.oneof_field_by_group["request"]

    assert {kind.name for kind in kinds} == set(Phase)


@pytest.mark.parametrize(
    ("message", "ours"),
    [
        (
            service.ProcessingRequest(
                response_body=service.HttpBody(
                    body=b"x",
                    end_of_stream=True,
                    end_of_stream_without_message=True,
                    grpc_message_compressed=True,
                ),
                metadata_context=core.Metadata(
                    filter_metadata={"a": Struct.from_dict({"b": 1.0})},
                    typed_filter_metadata={"c": PackedAny(type_url="t/d", value=b"e")},
                ),
            ),
            pb.ProcessingRequest,
        ),
        (
            service.ProcessingResponse(
                streamed_immediate_response=service.StreamedImmediateResponse(
                    body_response=service.StreamedBodyResponse(
                        body=b"x", grpc_message_compressed=True
                    )
                ),
                request_drain=True,
            ),
            pb.ProcessingResponse,
        ),
        (
            service.ProcessingResponse(
                request_headers=service.HeadersResponse(
                    response=service.CommonResponse(
                        header_mutation=service.HeaderMutation(
                            set_headers=[
                                core.HeaderValueOption(
                                    header=core.HeaderValue(key="a"), keep_empty_value=True
                                )
                            ]
                        ),
                        trailers=core.HeaderMap(headers=[core.HeaderValue(key="b", value="c")]),
                    )
                )
            ),
            pb.ProcessingResponse,
        ),
    ],
    ids=["request", "immediate response", "headers response"],
)
def test_fields_that_our_schema_lacks_survive(
    message: betterproto2.Message, ours: type[Message]
) -> None:
    written = ours.FromString(bytes(message)).SerializeToString()

    assert type(message).parse(written) == message


def test_the_compiled_schemas_are_what_the_proto_files_give(tmp_path: Path) -> None:
    subprocess.run([sys.executable, REPOSITORY / "protos/generate.py", tmp_path], check=True)

    for name in ("extproc/ext_proc_pb2", "extproc/access_log/access_log_pb2"):
        assert_same(tmp_path, Path(f"pdrouter/{name}.py"))
        assert_same(tmp_path, Path(f"pdrouter/{name}.pyi"))


def assert_same(made: Path, path: Path) -> None:
    assert (made / path).read_bytes() == (REPOSITORY / path).read_bytes()
