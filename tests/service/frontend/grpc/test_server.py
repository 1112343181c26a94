"""The server's limits and connections: messages, compression, keep-alive, age."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection_pb2

from convmlp.v1 import vision_pb2 as pb
from service.frontend.grpc.server import EXTRA_BYTES, KeepAlive
from tests.service.frontend.grpc.http2_frames import (
    ACK,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    NO_ERROR,
    PING,
    error_code,
    open_http2,
)
from tests.service.frontend.grpc_server import (
    RpcWithWorker,
    health_of,
    open_rpc,
    reflection_of,
    refusal,
    retry_s,
    rich,
    stub_of,
)
from tests.service.frontend.rest_server import picture
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
LIMIT = 2 * MIB
"""Of an image, and of a request, in the front-end that this module's tests share."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rpc() -> AsyncIterator[RpcWithWorker]:
    async with open_rpc(max_image_bytes=LIMIT, max_request_bytes=LIMIT) as running:
        yield running


def bitmap(size: int) -> bytes:
    """A grey picture of nearly, and at most, `size` bytes."""
    side = int(((size - 1000) / 3) ** 0.5)
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((side, side, 3), 7, np.uint8)).save(file, "BMP")
    return file.getvalue()


async def test_an_image_of_the_maximum_size_is_answered() -> None:
    """By default an image may have 20 MiB, beyond gRPC's own default of 4 MiB."""
    async with open_rpc() as rpc:
        image = bitmap(20 * MIB)
        assert len(image) > 19.9 * MIB
        answer = await rpc.stub.Classify(pb.ClassifyRequest(image=image, top_k=1), timeout=60)
    assert answer.labels[0].index == 7


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + EXTRA_BYTES - 1000])
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_too_many_bytes_are_an_error_of_the_service(
    rpc: RpcWithWorker, size: int, compression: grpc.Compression | None
) -> None:
    """A message over the limits is INVALID_ARGUMENT and names the limit."""
    error = await refusal(rpc.stub.Classify(pb.ClassifyRequest(image=bytes(size)), compression=compression))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the limit is {LIMIT:,}" in (error.details() or "")


async def test_far_too_many_bytes_are_an_error_of_grpc(rpc: RpcWithWorker) -> None:
    """gRPC itself refuses a far longer message with RESOURCE_EXHAUSTED, and the connection stays usable."""
    error = await refusal(rpc.stub.Classify(pb.ClassifyRequest(image=bytes(LIMIT + EXTRA_BYTES + 1))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")
    assert (await rpc.stub.Classify(pb.ClassifyRequest(image=picture(3)))).labels[0].index == 3


@pytest.mark.parametrize(("setting", "shrinks"), [("none", False), ("gzip", True), ("deflate", True)])
async def test_replies_are_compressed_by_setting(setting: str, shrinks: bool) -> None:
    """With the setting the same reply takes fewer bytes."""
    async with open_rpc(grpc_compression=setting) as rpc, relay(rpc.address) as (address, received):
        async with grpc.aio.insecure_channel(address) as channel:
            models = await stub_of(channel).ListModels(pb.ListModelsRequest())
        assert len(models.models) == 3
        assert (sum(received) < models.ByteSize()) == shrinks


@asynccontextmanager
async def relay(target: str) -> AsyncIterator[tuple[str, list[int]]]:
    """An address that forwards to another, and the sizes of the chunks that came back."""
    received: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: list[int]) -> None:
        while data := await reader.read(2**16):
            counts.append(len(data))
            writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer, []), pump(far_reader, writer, received))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", received


@pytest.mark.settings(keep_alive=KeepAlive(interval_ms=100))
async def test_idle_connections_are_pinged(fresh_rpc: RpcWithWorker) -> None:
    """An idle connection carries pings, so that proxies keep it open; a client that answers stays connected."""
    async with open_http2(fresh_rpc.address) as connection:
        for _ in range(5):
            ping = await connection.next(PING)
            await connection.send(PING, ACK, ping.payload)


async def test_a_dead_peer_is_disconnected() -> None:
    """The server closes the connection of a client that does not answer its pings."""
    keep_alive = KeepAlive(interval_ms=100, timeout_ms=200)
    async with open_rpc(keep_alive=keep_alive) as rpc, open_http2(rpc.address) as silent:
        await silent.next(PING)
        assert (await silent.next(GOAWAY)).payload.endswith(b"ping_timeout")
        with pytest.raises(asyncio.IncompleteReadError):
            await silent.next(PING)


async def test_callers_may_ping_often() -> None:
    """Clients without a call may ping at the allowed interval; faster ones get ENHANCE_YOUR_CALM."""
    interval_ms = 100
    async with open_rpc(keep_alive=KeepAlive(client_interval_ms=interval_ms)) as rpc:
        async with open_http2(rpc.address) as polite:
            for _ in range(8):
                await asyncio.sleep(1.2 * interval_ms / 1000)
                await polite.send(PING, payload=bytes(8))
                await polite.next(PING, ACK)
        async with open_http2(rpc.address) as flooding:
            await flooding.send(PING, payload=bytes(8), times=8)
            assert error_code(await flooding.next(GOAWAY)) == ENHANCE_YOUR_CALM


async def test_keep_alive_suits_load_balancers() -> None:
    """Pings come well below the shortest common idle timeout, 60 s, and clients may ping every 10 s."""
    keep_alive = KeepAlive()
    assert keep_alive.interval_ms + keep_alive.timeout_ms < 60_000
    assert keep_alive.client_interval_ms < 10_000


@pytest.mark.settings(max_request_bytes=2**40, grpc_max_connection_age_ms=2**40)
async def test_settings_beyond_grpcs_range(fresh_rpc: RpcWithWorker) -> None:
    """Settings beyond gRPC's range are cut to it."""
    assert (await fresh_rpc.stub.Classify(pb.ClassifyRequest(image=picture(6)))).labels[0].index == 6


@pytest.mark.settings(grpc_max_connection_age_ms=300)
async def test_connections_end_at_their_age_and_calls_do_not(fresh_rpc: RpcWithWorker) -> None:
    """A connection past its maximum age gets GOAWAY; its calls are finished, and the client reconnects."""
    async with open_http2(fresh_rpc.address) as connection:
        assert error_code(await connection.next(GOAWAY)) == NO_ERROR
    fresh_rpc.worker.runner.unblocked.clear()
    held = asyncio.ensure_future(fresh_rpc.stub.Classify(pb.ClassifyRequest(image=picture(5))))
    await until(lambda: fresh_rpc.in_flight == 1)
    async with asyncio.timeout(PATIENCE_S):
        await fresh_rpc.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    fresh_rpc.worker.runner.unblocked.set()
    assert (await held).labels[0].index == 5
    assert (await fresh_rpc.stub.Classify(pb.ClassifyRequest(image=picture(6)))).labels[0].index == 6


@pytest.mark.settings(max_in_flight=2)
async def test_calls_beyond_the_limit_are_refused_at_once(fresh_rpc: RpcWithWorker) -> None:
    """A connection has no more open calls than the process accepts; calls of another are refused."""
    async with another_channel(fresh_rpc) as other:
        fresh_rpc.worker.runner.unblocked.clear()
        held = [asyncio.ensure_future(fresh_rpc.stub.Classify(pb.ClassifyRequest(image=picture()))) for _ in range(3)]
        await until(lambda: fresh_rpc.in_flight == 2)
        error = await refusal(stub_of(other).Classify(pb.ClassifyRequest(image=picture())))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 images are in" in (error.details() or "")
        fresh_rpc.worker.runner.unblocked.set()
        assert [len((await one).labels) for one in held] == [5, 5, 5]


@pytest.mark.settings(max_in_flight=1)
async def test_open_calls_are_bounded_over_all_connections(fresh_rpc: RpcWithWorker) -> None:
    """Idle streams are open calls too: beyond the limit further calls are refused until one ends. Health is reported
    all the same."""
    async with another_channel(fresh_rpc) as second, another_channel(fresh_rpc) as third:
        idle = [stub_of(channel).ClassifyStream() for channel in (fresh_rpc.channel, second)]
        for stream in idle:
            await stream.initial_metadata()  # the server has taken it up
        error = await refusal(stub_of(third).Classify(pb.ClassifyRequest(image=picture())))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 calls are open" in (error.details() or "")
        assert retry_s(rich(error)) is not None
        assert fresh_rpc.count("convmlp_rejected_total", reason="in_flight") == 1
        health = await health_of(third).Check(HealthCheckRequest(), timeout=PATIENCE_S)
        assert health.status == HealthCheckResponse.SERVING
        idle[0].cancel()
        async with asyncio.timeout(PATIENCE_S):
            while await _code(stub_of(third).Classify(pb.ClassifyRequest(image=picture()))) is not grpc.StatusCode.OK:
                await asyncio.sleep(0.01)


async def _code(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> grpc.StatusCode:
    code: grpc.StatusCode = await call.code()
    return code


@asynccontextmanager
async def another_channel(rpc: RpcWithWorker) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own: channels of one address share one by default."""
    async with grpc.aio.insecure_channel(rpc.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_all_services(rpc: RpcWithWorker, version: str) -> None:
    """Both versions of reflection list all services, themselves included, with their descriptions."""
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *[
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            for name in ("convmlp.v1.Vision", f"grpc.reflection.{version}.ServerReflection")
        ],
    ]
    listed, *described = [answer async for answer in reflection_of(rpc.channel, version)(iter(asked))]
    assert {service.name for service in listed.list_services_response.service} == {
        "convmlp.v1.Vision",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = [
        FileDescriptorProto.FromString(one)
        for answer in described
        for one in answer.file_descriptor_response.file_descriptor_proto
    ]
    names = {f"{file.package}.{service.name}" for file in files for service in file.service}
    assert {"convmlp.v1.Vision", f"grpc.reflection.{version}.ServerReflection"} <= names


async def test_connections_are_bounded() -> None:
    """Beyond the limit a connection is closed at once, those within it are served, and a closed one makes room."""
    async with open_rpc(max_connections=2) as rpc:
        host, _, port = rpc.address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for reader, _ in silent:
            assert await reader.read(1)  # the server's settings: its end of the connection is there
        beyond, writer = await asyncio.open_connection(host, int(port))
        assert await beyond.read() == b""
        writer.close()
        for _, one in silent:
            one.close()
        await _until_served(rpc.address)


async def test_the_loopback_interface_keeps_connections_for_probes() -> None:
    """At the limit of connections from elsewhere, a container's own probes are answered on new connections, as often as
    they come; there they are bounded alone."""
    async with open_rpc(host="0.0.0.0", max_connections=2) as rpc:
        port = int(rpc.address.rpartition(":")[2])
        elsewhere = [await asyncio.open_connection("127.0.0.2", port) for _ in range(2)]
        for reader, _ in elsewhere:
            assert await reader.read(1)
        beyond, writer = await asyncio.open_connection("127.0.0.2", port)
        assert await beyond.read() == b""
        for _ in range(5):  # more than the limit, one after the other
            await _until_served(f"127.0.0.1:{port}")
        for one in (writer, *(one for _, one in elsewhere)):
            one.close()


async def _until_served(address: str) -> None:
    """Try again while the server has not noticed yet that the last connection ended."""
    async with asyncio.timeout(PATIENCE_S):
        while not await _is_served(address):
            await asyncio.sleep(0.01)


async def _is_served(address: str) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        try:
            await stub_of(channel).ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError:
            return False
        return True
