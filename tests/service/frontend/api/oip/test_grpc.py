"""gRPC alone: contents, ordered streams, deadlines and cancellation, metadata, and the other methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from tests.service.frontend.api.oip.oip_client import (
    OipFrontEnds,
    OipGrpcClient,
    Refused,
    encoded_request,
    grpc_request,
    open_oip,
    pixels_request,
    read_grpc,
)
from tests.service.frontend.grpc_server import refusal
from tests.service.frontend.rest_server import picture
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

T = TypeVar("T")

SERVICE = "inference.GRPCInferenceService"
IMAGE = picture(33)
GOOD = encoded_request("fake_classify", IMAGE)


@pytest.fixture
def rpc(oip: OipFrontEnds) -> OipGrpcClient:
    return oip.rpc


def grey(level: int, **more: object) -> pb.ModelInferRequest:
    return grpc_request(encoded_request("fake_classify", picture(level), **more))


async def each(messages: Sequence[T]) -> AsyncIterator[T]:
    for message in messages:
        yield message


def raw_method(channel: grpc.aio.Channel, name: str) -> Any:  # noqa: ANN401
    """A unary method from bytes to bytes."""
    return channel.unary_unary(f"/{SERVICE}/{name}")


async def test_data_in_contents(rpc: OipGrpcClient) -> None:
    """Tensors may come in the message's typed fields instead of as raw bytes."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([IMAGE, IMAGE])
    response = await rpc.stub.ModelInfer(pb.ModelInferRequest(model_name="fake_classify", inputs=[tensor]))
    assert read_grpc(response)["indices"][:, 0].tolist() == [33, 33]
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 2, 2, 3])
    tensor.contents.uint_contents.extend([77] * 12)
    response = await rpc.stub.ModelInfer(pb.ModelInferRequest(model_name="fake_classify", inputs=[tensor]))
    assert read_grpc(response)["indices"][0, 0] == 77


async def test_data_in_the_wrong_place(rpc: OipGrpcClient) -> None:
    """Data that is missing, given twice or in another type's field is an error that names the right field."""

    async def words(request: pb.ModelInferRequest) -> str:
        error = await refusal(rpc.stub.ModelInfer(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return error.details() or ""

    request = grpc_request(GOOD)
    request.inputs[0].contents.bytes_contents.append(IMAGE)
    assert "both as contents and as raw_input_contents" in await words(request)
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.append(1)
    assert "has uint_contents, bytes_contents" in await words(request)
    request.inputs[0].ClearField("contents")
    assert "has no data; put its data into raw_input_contents" in await words(request)
    request.raw_input_contents.extend([IMAGE, IMAGE])
    assert "raw_input_contents has 2 entries for 1 inputs" in await words(request)
    request = grpc_request(pixels_request("fake_classify", np.zeros((1, 1, 1, 3), np.uint8)))
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend([1, 2, 300])
    assert "has an element 300" in await words(request)
    request = grpc_request(GOOD)
    request.parameters["top_k"].SetInParent()
    assert "parameter 'top_k' has no value" in await words(request)
    request = grpc_request(GOOD)
    request.inputs[0].parameters["shared_memory_region"].string_param = "one"
    assert "shared memory is not supported" in await words(request)
    request = grpc_request(encoded_request("fake_detect", IMAGE))
    request.parameters["score_threshold"].double_param = float("nan")
    assert "expected a number from 0 to 1" in await words(request)


async def test_bytes_that_are_no_message(oip: OipFrontEnds) -> None:
    """Bytes that are not a message are an INVALID_ARGUMENT, of a call and of one message of a stream."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{oip.pair.rpc.port}") as channel:
        for method in ("ModelInfer", "ModelReady"):
            error = await refusal(raw_method(channel, method)(b"\xff\xff\xff"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert f"not a valid message inference.{method}Request" in (error.details() or "")

        async def messages() -> AsyncIterator[bytes]:
            yield b"\xff\xff\xff"
            yield grpc_request(GOOD).SerializeToString()

        converse: Any = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        stream = converse(messages())
        first, second = [pb.ModelStreamInferResponse.FromString(reply) async for reply in stream]
        assert "not a valid message" in first.error_message
        assert read_grpc(second.infer_response)["indices"][0, 0] == 33


async def test_stream_keeps_the_order_of_its_requests(oip: OipFrontEnds) -> None:
    """Replies come in the order of the requests, on which Triton's clients rely, though a later one is ready first."""
    requests = [
        grpc_request(
            encoded_request("fake_segment", picture(1, width=2500, height=2000), id="slow", outputs=["areas"])
        ),
        *(grey(level, id=f"quick {level}") for level in range(20)),
    ]
    replies = [reply async for reply in oip.rpc.stub.ModelStreamInfer(each(requests))]
    assert [reply.infer_response.id for reply in replies] == [request.id for request in requests]
    levels = [read_grpc(reply.infer_response)["indices"][0, 0] for reply in replies[1:]]
    assert levels == list(range(20))


async def test_stream_goes_on_after_an_error(rpc: OipGrpcClient) -> None:
    """The reply to a request that fails has the error, and the request's id and model; the stream goes on."""
    requests = [
        grey(1, id="a"),
        grpc_request(encoded_request("fake_classify", b"no picture", id="b")),
        grpc_request(encoded_request("nothing", IMAGE, id="c")),
        grey(4, id="d"),
    ]
    replies = [reply async for reply in rpc.stub.ModelStreamInfer(each(requests))]
    assert [reply.infer_response.id for reply in replies] == ["a", "b", "c", "d"]
    assert [bool(reply.error_message) for reply in replies] == [False, True, True, False]
    assert "the image format is not supported" in replies[1].error_message
    assert "there is no model 'nothing'" in replies[2].error_message
    assert not replies[1].infer_response.outputs
    names = [(reply.infer_response.model_name, reply.infer_response.model_version) for reply in replies]
    assert names == [(request.model_name, "1") for request in requests]


async def test_every_reply_of_a_stream_is_its_requests_last(rpc: OipGrpcClient) -> None:
    """Triton's mark of a request's last reply is on each, failed ones too; an answer has its model's precision."""
    requests = [grey(1, id="a"), grpc_request(encoded_request("fake_classify", b"no picture", id="b"))]
    answered, failed = [reply.infer_response async for reply in rpc.stub.ModelStreamInfer(each(requests))]
    assert answered.parameters["model_precision"].string_param == "fp32"
    assert all(reply.parameters["triton_final_response"].bool_param for reply in (answered, failed))
    assert "model_precision" not in failed.parameters


async def test_a_cancelled_stream_cancels_its_images(fresh_oip: OipFrontEnds) -> None:
    """Cancelling a stream cancels its images."""
    fresh_oip.worker.runner.unblocked.clear()
    registry = fresh_oip.pair.rpc.front_end.registry
    stream = fresh_oip.rpc.stub.ModelStreamInfer(each([grey(level) for level in range(6)]))
    await until(lambda: registry.get_sample_value("convmlp_in_flight_requests") == 6)
    stream.cancel()
    await until(lambda: registry.get_sample_value("convmlp_in_flight_requests") == 0)


async def test_a_calls_deadline(fresh_oip: OipFrontEnds) -> None:
    """A call's deadline cancels its images, and counts as deadline-exceeded."""
    fresh_oip.worker.runner.unblocked.clear()
    error = await refusal(fresh_oip.rpc.stub.ModelInfer(grpc_request(GOOD), timeout=2.0))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    registry = fresh_oip.pair.rpc.front_end.registry
    await until(lambda: registry.get_sample_value("convmlp_in_flight_requests") == 0)
    late = {"transport": "grpc", "task": "classify", "model": "fake_classify", "outcome": "deadline-exceeded"}
    await until(lambda: registry.get_sample_value("convmlp_requests_total", late) == 1)


async def test_metadata_of_a_call(rpc: OipGrpcClient) -> None:
    """A call has an id, the client's or a new one, the time of each stage, and the model's precision."""
    call = rpc.stub.ModelInfer(grpc_request(GOOD), metadata=(("x-request-id", "mine"),))
    await call
    trailing = dict(await call.trailing_metadata())
    assert trailing["x-request-id"] == "mine"
    assert trailing["server-timing"].startswith("decode;dur=")
    assert trailing["x-model-precision"] == "fp32"
    error = await refusal(rpc.stub.ModelInfer(grpc_request(encoded_request("nothing", IMAGE))))
    assert dict(error.trailing_metadata())["x-request-id"]


async def test_keys(tmp_path: Path) -> None:
    """With keys set, health is open and everything else needs one; a stream without one ends at once."""
    keys = tmp_path / "keys"
    keys.write_text("partner 0123456789abcdef\n")
    async with open_oip(api_keys_file=keys) as oip:
        stub = oip.rpc.stub
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        for call in (
            stub.ModelInfer(grpc_request(GOOD)),
            stub.ModelMetadata(pb.ModelMetadataRequest(name="fake_classify")),
            stub.ServerMetadata(pb.ServerMetadataRequest()),
        ):
            assert (await refusal(call)).code() is grpc.StatusCode.UNAUTHENTICATED
        stream = stub.ModelStreamInfer(each([grpc_request(GOOD)]))
        assert (await refusal(stream.read())).code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer 0123456789abcdef"),)
        assert (await stub.ModelInfer(grpc_request(GOOD), metadata=metadata)).model_name == "fake_classify"
        with pytest.raises(Refused) as refused:
            await oip.http.infer(GOOD)
        assert refused.value.status == 401


@pytest.mark.settings(rate_limit_per_s=0.001, rate_limit_burst=5)
async def test_rate_counts_images(fresh_oip: OipFrontEnds) -> None:
    """Each image of a request counts against its client's rate, over both transports."""
    for client, status in ((fresh_oip.http, 429), (fresh_oip.rpc, "RESOURCE_EXHAUSTED")):
        await client.infer(encoded_request("fake_classify", *[IMAGE] * 5))
        with pytest.raises(Refused) as refused:
            await client.infer(GOOD)
        assert refused.value.status == status


async def test_other_methods_agree_with_http(oip: OipFrontEnds) -> None:
    """Metadata and configuration are the same over both transports."""
    stub, http = oip.rpc.stub, oip.http.http
    server = await stub.ServerMetadata(pb.ServerMetadataRequest())
    assert list(server.extensions) == (await http.get("/v2")).json()["extensions"]
    for model in ("fake_classify", "fake_instances", "fake_segment"):
        received = (await http.get(f"/v2/models/{model}")).json()
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        request = grpc_request(encoded_request(model, IMAGE))
        assert [output.name for output in (await stub.ModelInfer(request)).outputs] == [
            output.name for output in metadata.outputs
        ]
        assert [(output.name, output.datatype, list(output.shape)) for output in metadata.outputs] == [
            (output["name"], output["datatype"], output["shape"]) for output in received["outputs"]
        ]
        config = (await stub.ModelConfig(pb.ModelConfigRequest(name=model))).config
        assert config.max_batch_size == 64
        assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
        assert [pb.DataType.Name(output.data_type) for output in config.output] == [
            output["data_type"] for output in (await http.get(f"/v2/models/{model}/config")).json()["output"]
        ]


async def test_readiness(rpc: OipGrpcClient) -> None:
    """An unknown model is not ready; every other query of it is an error."""
    assert (await rpc.stub.ModelReady(pb.ModelReadyRequest(name="fake_detect"))).ready
    assert not (await rpc.stub.ModelReady(pb.ModelReadyRequest(name="nothing"))).ready
    assert not (await rpc.stub.ModelReady(pb.ModelReadyRequest(name="fake_detect", version="2"))).ready
    error = await refusal(rpc.stub.ModelMetadata(pb.ModelMetadataRequest(name="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_statistics(fresh_oip: OipFrontEnds) -> None:
    """Requests over gRPC are in the statistics over gRPC."""
    await fresh_oip.rpc.infer(encoded_request("fake_detect", IMAGE, IMAGE))
    (stats,) = (await fresh_oip.rpc.stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake_detect"))).model_stats
    assert (stats.inference_count, stats.inference_stats.success.count) == (2, 1)
    assert stats.inference_stats.compute_infer.ns > 0
    assert 1 <= stats.execution_count <= 2  # together or one after the other
    for _ in range(2):
        await fresh_oip.rpc.infer(encoded_request("fake_detect", IMAGE))
    (later,) = (await fresh_oip.rpc.stub.ModelStatistics(pb.ModelStatisticsRequest(name="fake_detect"))).model_stats
    assert (later.inference_count, later.execution_count) == (4, stats.execution_count + 2)
    every = (await fresh_oip.rpc.stub.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert len(every) == 4


async def test_repository() -> None:
    """The index lists the models; loading and unloading work only if the setting allows them."""
    async with open_oip() as oip:
        index = await oip.rpc.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert "fake_detect" in [model.name for model in index.models]
        error = await refusal(
            oip.rpc.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="fake_detect"))
        )
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    async with open_oip(model_control=True) as oip:
        stub = oip.rpc.stub
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="fake_detect"))
        assert not (await stub.ModelReady(pb.ModelReadyRequest(name="fake_detect"))).ready
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="fake_detect"))
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="fake_detect"))).ready


async def test_unsupported_methods(rpc: OipGrpcClient) -> None:
    """Shared memory, tracing and logging end with UNIMPLEMENTED and a message; no region is registered."""
    assert not (await rpc.stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())).regions
    assert not (await rpc.stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())).regions
    for call in (
        rpc.stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest(name="one")),
        rpc.stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest()),
        rpc.stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest(name="one")),
        rpc.stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest()),
        rpc.stub.TraceSetting(pb.TraceSettingRequest()),
        rpc.stub.LogSettings(pb.LogSettingsRequest()),
    ):
        error = await refusal(call)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert len(error.details() or "") > 40


async def test_every_method_of_the_protocol_is_answered(oip: OipFrontEnds) -> None:
    """The server has every method of the protocol."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{oip.pair.rpc.port}") as channel:
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if not method.client_streaming:
                outcome = await asyncio.gather(raw_method(channel, method.name)(b""), return_exceptions=True)
                assert "Method not found!" not in str(outcome), method.name


async def test_health_and_reflection_know_the_service(oip: OipFrontEnds) -> None:
    """Health and reflection know the service by its name."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{oip.pair.rpc.port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        replies = reflection.ServerReflectionStub(channel).ServerReflectionInfo(each([request]))
        (reply,) = [reply async for reply in replies]
        assert len(reply.file_descriptor_response.file_descriptor_proto) == 1
