"""One request, and its answer as text: over HTTP, over gRPC, at the command line."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import json
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # noqa: F401  (known to the text format of a status)
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.recorded.answers import Http, Rpc
from tests.recorded.plain import hash_of, joined, member_names, settled, text_of

REQUEST_ID = "recorded"
TIMEOUT_S = 60.0
PAGES = ("text/html", "text/css", "text/javascript")
STATUS = "grpc-status-details-bin"


def ask_http(request: Http, port: int) -> str:
    """Status line, headers by name, and body."""
    method, _, target = request.line.partition(" ")
    headers = {"X-Request-Id": REQUEST_ID, **request.headers}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request(method, target, request.body, {name: value for name, value in headers.items() if value})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    sent = {name.lower(): value for name, value in response.getheaders()}
    assert len(sent) == len(response.getheaders()), "a header came twice"
    if (made := sent.get("x-request-id", REQUEST_ID)) != REQUEST_ID:
        sent["x-request-id"] = "<made>"
        body = body.replace(made.encode(), b"<made>")
    plain = settled(gzip.decompress(body) if sent.get("content-encoding") == "gzip" else body)
    if "/stats" in request.line:
        plain = "\n".join(dict.fromkeys(member_names(json.loads(body)))).encode()
    elif sent.get("content-type", "").startswith(PAGES):  # their text is a file of the repository
        plain = hash_of(body).encode()
    shown = _body(plain, sent)
    if plain != body:
        sent["content-length"] = "<length>"
    lines = [f"{response.status} {response.reason}", *(f"{name}: {sent[name]}" for name in sorted(sent))]
    return "\n".join([*lines, "", shown]).rstrip()


def _body(data: bytes, headers: Mapping[str, str]) -> str:
    """Of the Open Inference Protocol's binary form the JSON, and behind it the data."""
    length = int(headers.get("inference-header-content-length", 0))
    parts = (data[:length], data[length:]) if length else (data,)
    return "\n".join(text_of(part) for part in parts)


class Grpc:
    """Calls by descriptors that the server itself gives, so that no generated code is needed here."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._database = ProtoReflectionDescriptorDatabase(self._channel)
        self._pool = descriptor_pool.DescriptorPool(self._database)

    def close(self) -> None:
        self._channel.close()

    def services(self) -> dict[str, str]:
        """The methods of each service and the fields of their messages."""
        return {name: _declared(self._pool.FindServiceByName(name)) for name in sorted(self._database.get_services())}

    def serving(self) -> bool:
        check: Any = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            return bytes(check(b"", timeout=TIMEOUT_S)) == b"\x08\x01"
        except grpc.RpcError:
            return False

    def ask(self, request: Rpc, described_by: Grpc) -> str:
        """Status, metadata and replies; `described_by` knows the messages."""
        service, _, name = request.method.rpartition("/")
        method: Any = None
        with contextlib.suppress(KeyError):
            method = described_by._pool.FindServiceByName(service).methods_by_name[name]
        sent = [one if isinstance(one, bytes) else _filled(method.input_type, one) for one in request.messages]
        options: dict[str, Any] = {
            "metadata": (("x-request-id", REQUEST_ID), *request.metadata),
            "timeout": TIMEOUT_S,
        }
        channel: Any = self._channel
        replies: list[bytes] = []
        if method is not None and method.server_streaming:
            call = channel.stream_stream(f"/{request.method}")(iter(sent), **options)
            with contextlib.suppress(grpc.RpcError):
                replies.extend(call)
        else:
            call = channel.unary_unary(f"/{request.method}").future(sent[0], **options)
            with contextlib.suppress(grpc.RpcError):
                replies.append(call.result())
        lines = [f"{call.code().name} {call.details() or ''}".rstrip()]
        for kind, metadata in (("initial", call.initial_metadata()), ("trailing", call.trailing_metadata())):
            lines += [f"{kind} {name}: {value}" for name, value in sorted(metadata or ()) if name != STATUS]
        lines += [_status(value) for name, value in call.trailing_metadata() or () if name == STATUS]
        shown = [_readable(_new(method.output_type), reply) if method else text_of(reply) for reply in replies]
        # Replies of a stream may come in any order, unless they are promised in that of the requests.
        return "\n".join([*lines, *(f"\n{one}" for one in (shown if "Infer" in name else sorted(shown)))]).rstrip()


def _new(kind: Descriptor) -> Message:
    message: Message = message_factory.GetMessageClass(kind)()
    return message


def _filled(kind: Descriptor, fields: Mapping[str, Any]) -> bytes:
    return bytes(json_format.ParseDict(_as_json(fields), _new(kind)).SerializeToString())


def _as_json(value: Any) -> Any:  # noqa: ANN401
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {name: _as_json(one) for name, one in value.items()}
        case list() | tuple():
            return [_as_json(one) for one in value]
        case _:
            return value


def _readable(message: Message, data: bytes) -> str:
    message.ParseFromString(data)
    if "Statistics" in message.DESCRIPTOR.name:
        document = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
        return "\n".join(dict.fromkeys(member_names(document)))
    _settle(message)
    return joined(text_format.MessageToString(message, as_utf8=True, descriptor_pool=descriptor_pool.Default()))


def _settle(message: Message) -> None:
    """Durations become 1 where they are measured, pictures a hash of their pixels."""
    for field, value in message.ListFields():
        many = not isinstance(value, Message | bytes | str | int | float)
        if message.DESCRIPTOR.name == "Timings":
            setattr(message, field.name, 1)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            if many:
                value[:] = [settled(one) for one in value]
            else:
                setattr(message, field.name, settled(value))
        elif (kind := field.message_type) is not None and not kind.GetOptions().map_entry:
            for one in value if many else (value,):
                _settle(one)


def _status(data: bytes) -> str:
    status = status_pb2.Status.FromString(data)
    return text_format.MessageToString(status, as_utf8=True, descriptor_pool=descriptor_pool.Default())


def _declared(service: ServiceDescriptor) -> str:
    lines, kinds = [], {}
    for method in service.methods:
        ends = []
        for kind, streams in (
            (method.input_type, method.client_streaming),
            (method.output_type, method.server_streaming),
        ):
            kinds[kind.full_name] = kind
            ends.append(f"{'stream ' if streams else ''}{kind.full_name}")
        lines.append(f"rpc {method.name}({ends[0]}) returns ({ends[1]})")
    seen: dict[str, Descriptor] = {}
    waiting = list(kinds.values())
    while waiting:
        kind = waiting.pop()
        if kind.full_name not in seen and not kind.full_name.startswith("google."):
            seen[kind.full_name] = kind
            waiting += [field.message_type for field in kind.fields if field.message_type is not None]
    for name in sorted(seen):
        fields = [f"{field.number} {_kind_of(field)} {field.name}" for field in seen[name].fields]
        lines.append(f"message {name}: {'; '.join(fields)}".rstrip(": "))
    return "\n".join(lines)


def _kind_of(field: FieldDescriptor) -> str:
    other = field.message_type or field.enum_type
    if other is None:
        kind = _SCALARS[field.type]
    elif field.enum_type is not None:
        kind = f"{other.full_name}({', '.join(f'{one.number} {one.name}' for one in field.enum_type.values)})"
    else:
        kind = other.full_name
    return f"repeated {kind}" if field.is_repeated else kind


_SCALARS = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in vars(FieldDescriptor)
    if name.startswith("TYPE_")
}
