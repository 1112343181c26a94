"""Inference requests and responses as gRPC messages: ModelInferRequest → InferRequest, InferResponse → bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model.model_name import base_name, version_of
from service.errors import BadRequest
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from service.frontend.api.oip.protocol import (
    MAX_LISTED,
    Datatype,
    InferRequest,
    InferResponse,
    InputTensor,
    Parameter,
    RequestedOutput,
    class_count,
    refuse_shared_memory,
)

BYTES_FIELD, UINT8_FIELD = "bytes_contents", "uint_contents"
FINAL_RESPONSE = "triton_final_response"
"""The parameter that marks a request's last reply in a stream. As of Triton's ordinary models each request has one."""
PRECISION = "model_precision"
"""The parameter of a stream's reply that names what the network computed in."""


def read_request(message: pb.ModelInferRequest) -> InferRequest:
    """Raises BadRequest where an input's data is missing, given twice, or in the wrong field."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequest(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; expected one each, or none"
        )
    return InferRequest(
        message.id,
        tuple([_input(tensor, raw[index] if raw else None) for index, tensor in enumerate(message.inputs)]),
        tuple([_output(output) for output in message.outputs]),
        parameters_of(message.parameters),
    )


def response_message(response: InferResponse) -> bytes:
    """A response, always with raw data, as Triton's."""
    message = pb.ModelInferResponse()
    _fill(message, response)
    return message.SerializeToString()


def stream_message(response: InferResponse) -> bytes:
    """A reply of a stream, with the precision that a call has in its trailing metadata."""
    message = pb.ModelStreamInferResponse()
    _fill(message.infer_response, response)
    message.infer_response.parameters[PRECISION].string_param = response.precision
    message.infer_response.parameters[FINAL_RESPONSE].bool_param = True
    return message.SerializeToString()


def stream_error(error_message: str, model: str, request_id: str) -> bytes:
    """`model` and `request_id`: those in the request's message, by which clients match the reply."""
    response = pb.ModelInferResponse(model_name=base_name(model), model_version=version_of(model), id=request_id)
    response.parameters[FINAL_RESPONSE].bool_param = True
    return pb.ModelStreamInferResponse(error_message=error_message, infer_response=response).SerializeToString()


def _fill(message: pb.ModelInferResponse, response: InferResponse) -> None:
    message.model_name, message.model_version, message.id = response.model, response.version, response.id
    for tensor, _ in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensor.raw())


def parameters_of(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    return {name: _value(name, value) for name, value in parameters.items()}


def _value(name: str, parameter: pb.InferParameter) -> Parameter:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise BadRequest(f"parameter {name[:80]!r} has no value")
    value: Parameter = getattr(parameter, kind)
    return value


def _input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> InputTensor:
    refuse_shared_memory(tensor.name, tensor.parameters)
    name, shape = tensor.name[:40], tuple(tensor.shape)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is not None:
        if filled:
            raise BadRequest(f"input {name!r} has data both as contents and as raw_input_contents; send it once")
        return InputTensor(tensor.name, tensor.datatype, shape, memoryview(raw))
    if tensor.datatype == Datatype.BYTES and filled == [BYTES_FIELD]:
        return InputTensor(tensor.name, tensor.datatype, shape, list(tensor.contents.bytes_contents))
    if tensor.datatype == Datatype.UINT8 and filled == [UINT8_FIELD]:
        return InputTensor(tensor.name, tensor.datatype, shape, _pixels(name, tensor.contents.uint_contents))
    raise BadRequest(
        f"input {name!r} of datatype {tensor.datatype[:20]!r} has {', '.join(filled) or 'no data'}; put its data into "
        f"raw_input_contents (or BYTES into {BYTES_FIELD}, UINT8 into {UINT8_FIELD})"
    )


def _pixels(name: str, values: Sequence[int]) -> memoryview:
    if len(values) > MAX_LISTED:
        raise BadRequest(
            f"input {name!r} has {len(values):,} elements; contents carry at most {MAX_LISTED:,}, send it as "
            "raw_input_contents"
        )
    array = np.fromiter(values, np.uint32, len(values))
    if array.max() > 255:
        raise BadRequest(f"input {name!r} has an element {array.max()}; UINT8 is 0 to 255")
    return array.astype(np.uint8).data


def _output(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    parameters = parameters_of(output.parameters)
    refuse_shared_memory(output.name, parameters)
    return RequestedOutput(output.name, True, class_count(output.name[:40], parameters))
