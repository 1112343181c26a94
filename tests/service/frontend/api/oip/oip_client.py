"""A client of the protocol over either transport, and real front-ends on free ports; only the device is a fake.

It uses none of the service's code for tensors: bytes are packed and read as the protocol specifies.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import httpx2
import numpy as np
import numpy.typing as npt

from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes import FakeWorker, fake_instances, fake_settings, fake_worker
from tests.service.frontend.both_transports import Pair, open_pair_at
from tests.waiting import until

DTYPES = {"UINT8": "u1", "UINT16": "<u2", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}
JSON_LENGTH = "Inference-Header-Content-Length"

Array = npt.NDArray[Any]


class Refused(Exception):
    """`status`: HTTP's number, or the name of gRPC's code."""

    def __init__(self, status: int | str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class OipRequest:
    """An inference request with one input, its data as raw bytes."""

    model: str
    datatype: str
    shape: Sequence[int]
    data: bytes
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    version: str = ""
    input: str = "image"


@dataclass(frozen=True)
class OipResponse:
    model: str
    id: str
    outputs: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]


class OipClient(Protocol):
    async def infer(self, request: OipRequest) -> OipResponse:
        """Raises Refused."""


def encoded(*images: bytes) -> bytes:
    """Elements of BYTES as raw data."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def encoded_request(model: str, *images: bytes, **more: Any) -> OipRequest:  # noqa: ANN401
    return OipRequest(model, "BYTES", [len(images)], encoded(*images), **more)


def pixels_request(model: str, pixels: Array, **more: Any) -> OipRequest:  # noqa: ANN401
    """`pixels`: uint8 (N, H, W, 3)."""
    return OipRequest(model, "UINT8", pixels.shape, pixels.tobytes(), **more)


def array_of(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    if datatype != "BYTES":
        return np.frombuffer(data, DTYPES[datatype]).reshape(shape)
    elements, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def http_body(request: OipRequest, **document: Any) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
    """Body and headers of an infer request; `document` adds members to the JSON, or replaces them."""
    tensor = {
        "name": request.input,
        "datatype": request.datatype,
        "shape": list(request.shape),
        "parameters": {"binary_data_size": len(request.data)},
    }
    parameters = {"binary_data_output": True, **request.parameters}
    document = {"id": request.id, "inputs": [tensor], "parameters": parameters, **document}
    if request.outputs:
        document["outputs"] = [{"name": name} for name in request.outputs]
    text = json.dumps(document).encode()
    return text + request.data, {JSON_LENGTH: str(len(text))}


def read_http(response: httpx2.Response) -> OipResponse:
    """Raises Refused."""
    if response.status_code != 200:
        assert response.headers["content-type"] == "application/json"
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["error"] == problem["detail"]
        raise Refused(response.status_code, problem["error"])
    length = int(response.headers.get(JSON_LENGTH, len(response.content)))
    document, rest = json.loads(response.content[:length]), response.content[length:]
    outputs = {}
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            dtype = DTYPES.get(output["datatype"], object)
            outputs[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
        else:
            outputs[output["name"]] = array_of(output["datatype"], output["shape"], rest[:size])
            rest = rest[size:]
    assert not rest
    return OipResponse(document["model_name"], document.get("id", ""), outputs)


def grpc_request(request: OipRequest) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name=request.input, datatype=request.datatype, shape=request.shape)
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in request.outputs]
    return pb.ModelInferRequest(
        model_name=request.model,
        model_version=request.version,
        id=request.id,
        parameters={name: grpc_parameter(value) for name, value in request.parameters.items()},
        inputs=[tensor],
        outputs=outputs,
        raw_input_contents=[request.data],
    )


def grpc_parameter(value: Any) -> pb.InferParameter:  # noqa: ANN401
    match value:
        case bool():
            return pb.InferParameter(bool_param=value)
        case int():
            return pb.InferParameter(int64_param=value)
        case float():
            return pb.InferParameter(double_param=value)
        case _:
            return pb.InferParameter(string_param=value)


def read_grpc(response: pb.ModelInferResponse) -> OipResponse:
    outputs = {
        output.name: array_of(output.datatype, output.shape, raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    return OipResponse(response.model_name, response.id, outputs)


class OipHttpClient:
    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def infer(self, request: OipRequest) -> OipResponse:
        body, headers = http_body(request)
        version = f"/versions/{request.version}" if request.version else ""
        path = f"/v2/models/{request.model}{version}/infer"
        return read_http(await self.http.post(path, content=body, headers=headers))


class OipGrpcClient:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = GRPCInferenceServiceStub(channel)

    async def infer(self, request: OipRequest) -> OipResponse:
        try:
            return read_grpc(await self.stub.ModelInfer(grpc_request(request)))
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().name, error.details() or "") from None


@dataclass(frozen=True)
class OipFrontEnds:
    """Both front-ends, and their worker."""

    http: OipHttpClient
    rpc: OipGrpcClient
    pair: Pair
    worker: FakeWorker

    def over(self, transport: str) -> OipClient:
        return self.http if transport == "http" else self.rpc


@asynccontextmanager
async def open_oip(**overrides: Any) -> AsyncIterator[OipFrontEnds]:  # noqa: ANN401
    """Front-ends of the three fake models and a detector with masks; `overrides` are settings."""
    settings = fake_settings(**overrides)
    async with (
        fake_worker(settings, more=[fake_instances()]) as worker,
        open_pair_at(worker.address, settings) as pair,
        grpc.aio.insecure_channel(f"127.0.0.1:{pair.rpc.port}") as channel,
    ):
        await until(lambda: pair.ready)
        try:
            yield OipFrontEnds(OipHttpClient(pair.http), OipGrpcClient(channel), pair, worker)
        finally:
            worker.runner.unblocked.set()
