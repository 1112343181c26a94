"""Deadlines while every thread of a front-end is busy, over every API: an answer in time, and no work for it later.

The threads are held by work of the tests, which stands for pictures that take long.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest

from convmlp.v1 import vision_pb2 as pb
from model.types import QueryParams
from service.errors import DeadlineExceeded
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from service.types import PredictRequest
from tests.service.frontend.api.oip.oip_client import encoded
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.grpc_server import refusal
from tests.service.frontend.held_threads import held_threads
from tests.service.frontend.rest_server import picture
from tests.waiting import until

DEADLINE_S = 0.3
ENCODING_DEADLINE_S = 3.0
"""Far later than the begin of encoding, even on a busy machine."""
HANG_S = 50.0
"""An answer that takes longer has waited for something else than its deadline: the threads are held for a minute."""
TIMEOUT = {"X-Request-Timeout-Ms": str(round(DEADLINE_S * 1000))}


async def over_rest(pair: PairAtWork, path: str, **request: Any) -> object:  # noqa: ANN401
    return (await pair.http.post(path, headers=TIMEOUT, **request)).status_code


async def over_http_oip(pair: PairAtWork) -> object:
    body = {
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture()).decode()]},
        ]
    }
    return await over_rest(pair, "/v2/models/fake_classify/infer", json=body)


async def over_grpc(pair: PairAtWork) -> object:
    error = await refusal(pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture()), timeout=DEADLINE_S))
    return error.code()


async def over_a_stream(pair: PairAtWork) -> object:
    # Not with `write`, which raises where the deadline has passed already.
    return await pair.rpc.stub.ClassifyStream(iter([pb.ClassifyRequest(image=picture())]), timeout=DEADLINE_S).code()


async def over_grpc_oip(pair: PairAtWork) -> object:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    request = oip.ModelInferRequest(
        model_name="fake_classify", inputs=[tensor], raw_input_contents=[encoded(picture())]
    )
    error = await refusal(GRPCInferenceServiceStub(pair.rpc.channel).ModelInfer(request, timeout=DEADLINE_S))
    return error.code()


WAYS: dict[str, Callable[[PairAtWork], Coroutine[Any, Any, object]]] = {
    "classify": lambda pair: over_rest(pair, "/classify", content=picture()),
    "several": lambda pair: over_rest(pair, "/classify", files=[("image", picture(grey)) for grey in (1, 2, 3)]),
    "json": lambda pair: over_rest(pair, "/classify", json={"image": base64.b64encode(picture()).decode()}),
    "hugging-face": lambda pair: over_rest(pair, "/compat/huggingface/classify", content=picture()),
    "deepstack": lambda pair: over_rest(pair, "/compat/deepstack/v1/vision/scene", content=picture()),
    "roboflow": lambda pair: over_rest(pair, "/compat/roboflow/fake_classify/1", content=picture()),
    "open-inference": over_http_oip,
    "grpc": over_grpc,
    "grpc-stream": over_a_stream,
    "grpc-open-inference": over_grpc_oip,
}


@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_comes_at_the_deadline(way: str) -> None:
    """Over every API the error comes at the caller's deadline, though no thread is free; the picture is not decoded
    afterwards, and the next request is answered."""
    async with open_pair() as pair:
        front_ends = (pair.rest, pair.rpc.front_end)
        async with held_threads(*(one.engine.threads for one in front_ends)) as go:
            began_s = time.monotonic()
            status = await WAYS[way](pair)
            assert status in (504, grpc.StatusCode.DEADLINE_EXCEEDED)
            assert time.monotonic() - began_s < HANG_S
            await until(lambda: all(one.engine.threads.waiting == 0 for one in front_ends))
            before = len(pair.worker.runner.batches)
            go.set()
            assert (await pair.http.post("/classify", content=picture(7))).status_code == 200
            await pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture(8)))
            assert len(pair.worker.runner.batches) == before + 2


async def test_a_deadline_is_kept_while_an_answer_is_encoded() -> None:
    """Encoding that takes too long does not hold up the error; its thread is free again once it has ended."""
    go = threading.Event()

    def slow(*_: object) -> bytes:
        assert go.wait(60)
        return b""

    async with open_pair() as pair:
        engine = pair.rest.engine
        model = engine.model("fake_segment")
        request = PredictRequest("r", model, picture(), QueryParams(), time.monotonic() + ENCODING_DEADLINE_S, "caller")
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="while a thread worked on it"):
            await engine.predict(request, slow)
        assert time.monotonic() - began_s < HANG_S
        assert engine.threads.abandoned == 1
        go.set()
        await until(lambda: engine.threads.abandoned == 0 and engine.threads.held_bytes == 0)


async def test_a_caller_that_leaves_costs_no_thread() -> None:
    """A picture whose caller disconnects while it waits for a thread is never decoded."""
    async with open_pair() as pair:
        body = picture()
        async with held_threads(pair.rest.engine.threads):
            _, writer = await asyncio.open_connection("127.0.0.1", pair.http.base_url.port)
            writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await until(lambda: pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == 1)
            writer.close()
            await until(lambda: pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == 0)
        before = len(pair.worker.runner.batches)
        assert (await pair.http.post("/classify", content=picture(7))).status_code == 200
        assert len(pair.worker.runner.batches) == before + 1
