"""One streaming call compared with concurrent unary calls: images per second, as ratios of interleaved rounds.

python -m benchmarks.stream --pictures FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from convmlp.v1 import vision_pb2, vision_pb2_grpc
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service

IMAGES = 64
MAX_MESSAGE_BYTES = 64 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files (default: the reference picture)")
    parser.add_argument("--rounds", type=int, default=9)
    arguments, flags = parser.parse_known_args()
    files = sorted(arguments.pictures.glob("*.jp*g")) if arguments.pictures else [REFERENCE_PICTURE]
    pictures = [files[at % len(files)].read_bytes() for at in range(IMAGES)]
    with running_service(*flags) as service:
        rates = asyncio.run(_measure(service.grpc_address, pictures, arguments.rounds))
    for name, column in zip(("unary", "stream"), zip(*rates, strict=True), strict=True):
        print(f"{name:8}{statistics.median(column):6.1f} images/s [{min(column):.1f}-{max(column):.1f}]")
    ratios = [stream / unary for unary, stream in rates]
    print(f"stream / unary: {statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]")


@asynccontextmanager
async def vision(address: str) -> AsyncIterator[vision_pb2_grpc.VisionAsyncStub]:
    """The gRPC service, over one connection."""
    sizes = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    async with grpc.aio.insecure_channel(address, options=sizes) as channel:
        yield vision_pb2_grpc.VisionStub(channel)


async def _measure(address: str, pictures: Sequence[bytes], rounds: int) -> list[tuple[float, float]]:
    """Images per second by unary calls and by a stream, for each round, after a warm-up round."""
    async with vision(address) as stub:
        return [(await _unary(stub, pictures), await _stream(stub, pictures)) for _ in range(rounds + 1)][1:]


async def _unary(stub: vision_pb2_grpc.VisionAsyncStub, pictures: Sequence[bytes]) -> float:
    started_s = time.monotonic()
    requests = (vision_pb2.ClassifyRequest(image=picture) for picture in pictures)
    await asyncio.gather(*(stub.Classify(request, timeout=60) for request in requests))
    return len(pictures) / (time.monotonic() - started_s)


async def _stream(stub: vision_pb2_grpc.VisionAsyncStub, pictures: Sequence[bytes]) -> float:
    async def requests() -> AsyncIterator[vision_pb2.ClassifyRequest]:
        for at, picture in enumerate(pictures):
            yield vision_pb2.ClassifyRequest(id=str(at), image=picture)

    started_s = time.monotonic()
    replies = [reply async for reply in stub.ClassifyStream(requests(), timeout=60)]
    assert len(replies) == len(pictures)
    assert not any(reply.HasField("error") for reply in replies)
    return len(pictures) / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
