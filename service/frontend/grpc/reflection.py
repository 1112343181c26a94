"""Server reflection, by which clients such as grpcurl find services and messages: v1, and v1alpha for older clients.

grpcio-reflection has only v1alpha. v1 is the same protocol in another package: its messages have the same fields, so
the same servicer answers it.
"""

from __future__ import annotations

from collections.abc import Collection

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR, ServerReflectionRequest, ServerReflectionResponse

V1ALPHA = reflection.SERVICE_NAME
V1 = V1ALPHA.replace("v1alpha", "v1")


def add_reflection(server: grpc.aio.Server, services: Collection[str]) -> None:
    """Add both versions to a server. They list themselves and `services`."""
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer((*services, V1, V1ALPHA))
    info = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=ServerReflectionRequest.FromString,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": info}
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(version, handlers) for version in (V1, V1ALPHA))
    )


def _describe_v1() -> None:
    """Put the description of v1 into the pool that the servicer reads, so that clients find it as well."""
    alpha = FileDescriptorProto()
    DESCRIPTOR.CopyToProto(alpha)
    v1 = text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto())
    descriptor_pool.Default().Add(v1)  # the same file again changes nothing
