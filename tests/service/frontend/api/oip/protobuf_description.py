"""A protobuf description as plain data. As a program it prints tritonclient's."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

Description = dict[str, dict[str, Any]]
"""By full name: a message's fields, an enum's values, a service's methods."""


def described(file: FileDescriptor) -> Description:
    facts: Description = {}
    for message in _messages(list(file.message_types_by_name.values())):
        facts[message.full_name] = {field.name: _field(field) for field in message.fields}
        facts.update({enum.full_name: _values(enum) for enum in message.enum_types})
    facts.update({enum.full_name: _values(enum) for enum in file.enum_types_by_name.values()})
    for service in file.services_by_name.values():
        facts[service.full_name] = {
            method.name: [
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            ]
            for method in service.methods
        }
    return facts


def _messages(messages: list[Descriptor]) -> Iterator[Descriptor]:
    for message in messages:
        yield message
        yield from _messages(list(message.nested_types))


def _field(field: FieldDescriptor) -> list[Any]:
    """Number, type, label, the full name of its message or enum, and its oneof."""
    kind = field.message_type or field.enum_type
    choice = field.containing_oneof
    return [
        field.number,
        field.type,
        field.is_repeated,
        kind.full_name if kind is not None else None,
        choice.name if choice is not None else None,
    ]


def _values(enum: EnumDescriptor) -> dict[str, Any]:
    return {value.name: value.number for value in enum.values}


if __name__ == "__main__":
    modules = (importlib.import_module(f"tritonclient.grpc.{name}") for name in ("service_pb2", "model_config_pb2"))
    json.dump([described(module.DESCRIPTOR) for module in modules], sys.stdout)
