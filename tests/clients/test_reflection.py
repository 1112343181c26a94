"""A client that has nothing but the gRPC address: it asks reflection v1 for services and messages, as grpcurl does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.clients.conftest import CAT, Expected
from tests.e2e.convmlp_process import RunningService

METHOD = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
"""v1 has the messages of v1alpha, under other names."""


def test_a_client_with_reflection_v1_classifies(service: RunningService, expected: Expected) -> None:
    """It finds the service, the files that describe it, and the method, and calls it."""
    with grpc.insecure_channel(service.grpc_address) as channel:
        names = [
            one.name for one in ask(channel, ServerReflectionRequest(list_services="")).list_services_response.service
        ]
        assert "convmlp.v1.Vision" in names
        pool = DescriptorPool()
        of_service = ServerReflectionRequest(file_containing_symbol="convmlp.v1.Vision")
        described = ask(channel, of_service).file_descriptor_response
        for file in in_order([FileDescriptorProto.FromString(one) for one in described.file_descriptor_proto]):
            pool.Add(file)
        method = pool.FindServiceByName("convmlp.v1.Vision").methods_by_name["Classify"]
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        answer: Any = call(GetMessageClass(method.input_type)(image=CAT.read_bytes()), timeout=60)
    assert [row.label for row in answer.labels] == list(expected.labels)


def ask(channel: grpc.Channel, question: ServerReflectionRequest) -> ServerReflectionResponse:
    """The one reply of a stream with one request."""
    stream: Any = channel.stream_stream(
        METHOD,
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    (reply,) = stream(iter([question]), timeout=60)
    assert isinstance(reply, ServerReflectionResponse)
    return reply


def in_order(files: list[FileDescriptorProto]) -> Iterator[FileDescriptorProto]:
    """Each file after those that it imports."""
    left = {file.name: file for file in files}
    while left:
        ready = [file for file in left.values() if not left.keys() & set(file.dependency)]
        assert ready
        for file in ready:
            del left[file.name]
            yield file
