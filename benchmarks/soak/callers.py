"""Callers of all transports and tasks, good and bad: each sends one request and returns how it ended.

Answers are compared with those that the same images got at the start, when nothing disturbed the service.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import grpc.aio
import PIL.Image

from benchmarks.soak.account import End, Ended
from benchmarks.soak.running import CannotStart
from convmlp.v1 import vision_pb2 as pb
from convmlp.v1 import vision_pb2_grpc
from model.reference import REFERENCE_PICTURE
from service.cli.load.http import ConnectionBroken, Connections, Response, request_bytes

TIMEOUT_MS = 6_000
"""The deadline that the callers set."""
MARGIN_S = 2.0
HANG_S = TIMEOUT_MS / 1000 + MARGIN_S
"""A request that has not ended by then hangs."""
UNDISTURBED_TIMEOUT_MS = 30_000
"""For what is compared with later: the machine may be busy."""
LEARN_ATTEMPTS = 10
"""Of each such request, on a machine so busy that its deadline passes."""
SCORE_TOLERANCE = 0.02
STREAM_LENGTH = 6
CHUNK_BYTES = 2_000
"""Of a slow sender, every CHUNK_PAUSE_S."""
CHUNK_PAUSE_S = 0.02

Fingerprint = tuple[tuple[object, ...], ...]
"""Of one image's result: class indices and rounded figures, in order."""


@dataclass(frozen=True, slots=True)
class Images:
    """Encoded images of several sizes and formats, made from the reference picture."""

    small: bytes
    png: bytes
    large: bytes
    truncated: bytes
    huge: bytes
    """A valid PNG header that declares more pixels than the service accepts."""

    @classmethod
    def make(cls) -> Images:
        small = REFERENCE_PICTURE.read_bytes()
        picture = PIL.Image.open(io.BytesIO(small)).convert("RGB")
        large = _encoded(picture.resize((4000, 3000)), "JPEG")
        png = _encoded(PIL.Image.new("L", (1, 1)), "PNG")
        header = png[12:16] + (60_000).to_bytes(4, "big") * 2 + png[24:29]
        huge = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
        return cls(small, _encoded(picture, "PNG"), large, small[: len(small) // 2], huge)


class Callers:
    """One method for each kind of request. Create it in the event loop."""

    def __init__(self, url: str, grpc_address: str, images: Images) -> None:
        self.images = images
        self.expected: dict[tuple[str, bytes], Fingerprint] = {}
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._connections = Connections(self._host, self._port)
        options = [("grpc.max_receive_message_length", -1), ("grpc.initial_reconnect_backoff_ms", 200)]
        self._channel = grpc.aio.insecure_channel(grpc_address, options)
        self._stub: Any = vision_pb2_grpc.VisionStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    def kinds(self) -> Mapping[str, tuple[int, Callable[[], Awaitable[Ended]]]]:
        """By name: how often, relative to the others, and what sends one request."""
        images = self.images
        return {
            "classify": (6, lambda: self._predict("/classify", images.small)),
            "classify png": (2, lambda: self._predict("/classify", images.png)),
            "classify 12 Mpx": (1, lambda: self._predict("/classify", images.large)),
            "detect": (2, lambda: self._predict("/detect", images.small)),
            "segment": (2, lambda: self._predict("/segment", images.small)),
            "json": (1, self._json),
            "multipart with a bad image": (2, self._multipart),
            "drawn": (1, self._drawn),
            "open inference": (2, self._open_inference),
            "hugging face": (1, self._hugging_face),
            "truncated": (1, lambda: self._rejected("/classify", images.truncated, 400)),
            "too many pixels": (1, lambda: self._rejected("/classify", images.huge, 413)),
            "not an image": (1, lambda: self._rejected("/detect", b"plain text", 415)),
            "no such model": (1, lambda: self._rejected("/classify?model=none", images.small, 404)),
            "bad parameter": (1, lambda: self._rejected("/classify?top_k=none", images.small, 422)),
            "leaves while sending": (1, lambda: self.leave(0.5)),
            "leaves while waiting": (1, lambda: self.leave(1.0)),
            "sends slowly": (1, self._slow),
            "grpc classify": (3, lambda: self._grpc(self._stub.Classify, pb.ClassifyRequest(image=images.small))),
            "grpc detect": (1, lambda: self._grpc(self._stub.Detect, pb.DetectRequest(image=images.small))),
            "grpc segment": (1, lambda: self._grpc(self._stub.Segment, pb.SegmentRequest(image=images.small))),
            "grpc truncated": (1, self._grpc_truncated),
            "grpc cancels": (1, self._grpc_cancels),
            "grpc stream": (1, self._grpc_stream),
        }

    # HTTP

    async def learn(self) -> None:
        """Record the expected answers. Call it while nothing disturbs the service. Raises CannotStart."""
        images = self.images
        for path in ("/classify", "/detect", "/segment"):
            for image in (images.small, images.png, images.large):
                for _ in range(LEARN_ATTEMPTS):
                    response = await self._post(path, image, {}, UNDISTURBED_TIMEOUT_MS)
                    if response.status not in (503, 504):
                        break
                    await asyncio.sleep(int(response.headers.get(b"retry-after", b"1")))
                if response.status != 200:
                    raise CannotStart(f"{path} is not answered: {_text(response)}")
                self.expected[path, image] = _fingerprint(json.loads(response.body)["results"][0])

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str], timeout_ms: int = TIMEOUT_MS) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = request_bytes("POST", self._host, path, {"X-Request-Timeout-Ms": str(timeout_ms), **named}, body)
        return await self._connections.request(request, timeout_ms / 1000 + MARGIN_S)

    async def _http(self, path: str, body: bytes, check: Callable[[Response], Ended], **headers: str) -> Ended:
        try:
            response = await self._post(path, body, headers)
        except ConnectionBroken as error:
            return Ended(End.CUT, str(error))
        except TimeoutError:
            return Ended(End.UNANSWERED, f"no answer within {HANG_S:g} s")
        if response.status in (429, 503):
            honest = response.headers.get(b"retry-after", b"").isdigit() and _problem(response) is not None
            return Ended(End.REFUSED if honest else End.WRONG, _text(response))
        if response.status == 504 and _problem(response) is not None:
            return Ended(End.TIMED_OUT, _text(response))
        return check(response)

    async def _predict(self, path: str, image: bytes) -> Ended:
        return await self._http(path, image, lambda response: self._compared(path, [image], response))

    def _compared(self, path: str, images: list[bytes], response: Response) -> Ended:
        """Compare with the expected answers. An image without one must have an error of its own."""
        if response.status != 200:
            return Ended(End.WRONG, _text(response))
        for image, result in zip(images, json.loads(response.body)["results"], strict=True):
            expected = self.expected.get((path, image))
            if expected is None:
                if result.get("error", {}).get("status") != 400:
                    return Ended(End.WRONG, f"the bad image of several got {str(result)[:200]}")
            elif "error" in result:
                status = result["error"].get("status")
                if status not in (503, 504):
                    return Ended(End.WRONG, str(result)[:200])
                return Ended(End.REFUSED if status == 503 else End.TIMED_OUT, str(result)[:200])
            elif not _same(_fingerprint(result), expected):
                return Ended(End.WRONG, f"another answer than before: {_fingerprint(result)[:3]}, {expected[:3]}")
        return Ended(End.ANSWERED)

    async def _json(self) -> Ended:
        body = json.dumps({"image": base64.b64encode(self.images.small).decode()}).encode()
        check = lambda response: self._compared("/classify", [self.images.small], response)  # noqa: E731
        return await self._http("/classify", body, check, Content_Type="application/json")

    async def _multipart(self) -> Ended:
        sent = [self.images.small, self.images.truncated, self.images.png]
        head = b'--soak\r\nContent-Disposition: form-data; name="image"; filename="one"\r\n\r\n'
        body = b"".join(head + image + b"\r\n" for image in sent) + b"--soak--\r\n"
        check = lambda response: self._compared("/classify", sent, response)  # noqa: E731
        return await self._http("/classify", body, check, Content_Type="multipart/form-data; boundary=soak")

    async def _drawn(self) -> Ended:
        def check(response: Response) -> Ended:
            right = response.status == 200 and response.body.startswith(b"\x89PNG")
            return Ended(End.ANSWERED) if right else Ended(End.WRONG, _text(response))

        return await self._http("/detect", self.images.small, check, Accept="image/png")

    async def _open_inference(self) -> Ended:
        data = [base64.b64encode(self.images.small).decode()]
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
        body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode()

        def check(response: Response) -> Ended:
            right = response.status == 200 and json.loads(response.body)["outputs"]
            return Ended(End.ANSWERED) if right else Ended(End.WRONG, _text(response))

        return await self._http("/v2/models/convmlp_pets_breed/infer", body, check, Content_Type="application/json")

    async def _hugging_face(self) -> Ended:
        def check(response: Response) -> Ended:
            right = response.status == 200 and json.loads(response.body)[0]["label"]
            return Ended(End.ANSWERED) if right else Ended(End.WRONG, _text(response))

        return await self._http("/compat/huggingface/classify", self.images.small, check)

    async def _rejected(self, path: str, body: bytes, status: int) -> Ended:
        def check(response: Response) -> Ended:
            right = response.status == status and _problem(response) is not None
            return Ended(End.REJECTED) if right else Ended(End.WRONG, f"expected {status}: {_text(response)}")

        return await self._http(path, body, check)

    async def leave(self, share: float) -> Ended:
        """Send a share of a request, then break the connection."""
        request = request_bytes("POST", self._host, "/segment", {}, self.images.small)
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(self._host, self._port), HANG_S)
        except (OSError, TimeoutError) as error:
            return Ended(End.CUT, str(error))
        writer.write(request[: int(len(request) * share)])
        await asyncio.sleep(0.01)
        writer.transport.abort()
        return Ended(End.LEFT)

    async def _slow(self) -> Ended:
        """Send a body in small parts on a connection of its own."""
        small = self.images.small
        headers = {"X-Request-Timeout-Ms": str(TIMEOUT_MS), "Connection": "close"}
        request = request_bytes("POST", self._host, "/classify", headers, small)
        try:
            async with asyncio.timeout(HANG_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                with contextlib.closing(writer):
                    for start in range(0, len(request), CHUNK_BYTES):
                        writer.write(request[start : start + CHUNK_BYTES])
                        await writer.drain()
                        await asyncio.sleep(CHUNK_PAUSE_S)
                    status = (await reader.read()).split(b" ", 2)[1:2]
        except TimeoutError:
            return Ended(End.UNANSWERED, f"no answer within {HANG_S:g} s")
        except OSError as error:
            return Ended(End.CUT, str(error))
        ends = {b"200": End.ANSWERED, b"503": End.REFUSED, b"504": End.TIMED_OUT}
        return Ended(ends.get(status[0], End.WRONG) if status else End.CUT, str(status))

    # gRPC

    async def _grpc(self, method: Any, request: Any) -> Ended:  # noqa: ANN401  (generated stubs)
        path = {"ClassifyRequest": "/classify", "DetectRequest": "/detect", "SegmentRequest": "/segment"}
        try:
            response = await asyncio.wait_for(method(request, timeout=TIMEOUT_MS / 1000), HANG_S)
        except grpc.aio.AioRpcError as error:
            return _grpc_end(error.code(), error.details() or "", retriable=_has_details(error))
        except TimeoutError:
            return Ended(End.UNANSWERED, f"no answer within {HANG_S:g} s")
        expected = self.expected[path[type(request).__name__], request.image]
        if not _same(_fingerprint_of_message(response), expected):
            return Ended(End.WRONG, f"another answer than before: {str(response)[:200]}")
        return Ended(End.ANSWERED)

    async def _grpc_truncated(self) -> Ended:
        ended = await self._grpc(self._stub.Classify, pb.ClassifyRequest(image=self.images.truncated))
        return Ended(End.REJECTED) if ended.detail.startswith("INVALID_ARGUMENT") else ended

    async def _grpc_cancels(self) -> Ended:
        call = self._stub.Segment(pb.SegmentRequest(image=self.images.small), timeout=TIMEOUT_MS / 1000)
        await asyncio.sleep(0.01)
        call.cancel()
        return Ended(End.LEFT)

    async def _grpc_stream(self) -> Ended:
        """A stream is one request here: it ends well if each of its messages has one reply."""
        small = self.images.small
        requests = [pb.ClassifyRequest(id=str(number), image=small) for number in range(STREAM_LENGTH)]
        replies = {}
        call = self._stub.ClassifyStream(iter(requests), timeout=TIMEOUT_MS / 1000)
        try:
            async with asyncio.timeout(HANG_S):
                async for reply in call:
                    replies[reply.id] = reply
        except grpc.aio.AioRpcError as error:
            return _grpc_end(error.code(), error.details() or "", retriable=_has_details(error))
        except TimeoutError:
            return Ended(End.UNANSWERED, f"no end within {HANG_S:g} s")
        finally:
            call.cancel()
        if set(replies) != {request.id for request in requests}:
            return Ended(End.WRONG, f"replies to {sorted(replies)} of {STREAM_LENGTH} requests")
        for reply in replies.values():
            if reply.error.code:
                return _grpc_end(_CODES[reply.error.code], reply.error.message, retriable=True)
            if not _same(_fingerprint_of_message(reply), self.expected["/classify", small]):
                return Ended(End.WRONG, f"another answer than before: {str(reply)[:200]}")
        return Ended(End.ANSWERED)


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _grpc_end(code: grpc.StatusCode, text: str, *, retriable: bool) -> Ended:
    """`retriable`: the service itself sent the status. A broken connection is UNAVAILABLE too, without its details."""
    detail = f"{code.name}: {text}"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return Ended(End.REFUSED if retriable else End.CUT, detail)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Ended(End.TIMED_OUT, detail)
    return Ended(End.WRONG, detail)


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    return any(name == "grpc-status-details-bin" for name, _ in error.trailing_metadata() or ())


def _fingerprint(result: Mapping[str, Any]) -> Fingerprint:
    """Of a REST result."""
    if "labels" in result:
        return tuple((one["index"], one["score"]) for one in result["labels"][:1])
    if "detections" in result:
        return tuple((one["index"], one["score"], *one["box"].values()) for one in result["detections"][:1])
    return tuple((one["index"], one["area"]) for one in result["segments"])


def _fingerprint_of_message(message: Any) -> Fingerprint:  # noqa: ANN401  (generated messages)
    if isinstance(message, pb.ClassifyResponse):
        return tuple((one.index, one.score) for one in message.labels[:1])
    if isinstance(message, pb.DetectResponse):
        boxes = ((one, one.box) for one in message.detections[:1])
        return tuple((one.index, one.score, box.xmin, box.ymin, box.xmax, box.ymax) for one, box in boxes)
    return tuple((one.index, one.area) for one in message.segments)


def _same(one: Fingerprint, other: Fingerprint) -> bool:
    """Equal classes in order; scores within SCORE_TOLERANCE, lengths and areas within 2 %."""
    if len(one) != len(other):
        return False
    for mine, theirs in zip(one, other, strict=True):
        if mine[0] != theirs[0] or len(mine) != len(theirs):
            return False
        for a, b in zip(mine[1:], theirs[1:], strict=True):
            assert isinstance(a, int | float)
            assert isinstance(b, int | float)
            if abs(a - b) > max(SCORE_TOLERANCE, 0.02 * max(abs(a), abs(b))):
                return False
    return True


def _problem(response: Response) -> Mapping[str, Any] | None:
    """The body as problem+json, if it is one."""
    media_type = response.headers.get(b"content-type", b"")
    if not media_type.startswith((b"application/problem+json", b"application/json")):
        return None
    try:
        problem = json.loads(response.body)
    except ValueError:
        return None
    return problem if isinstance(problem, dict) and problem.get("status") == response.status else None


def _text(response: Response) -> str:
    return f"{response.status} {response.body[:200]!r}"


def _encoded(picture: PIL.Image.Image, format_name: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_name)
    return buffer.getvalue()
