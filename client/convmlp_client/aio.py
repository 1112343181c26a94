"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, Unpack

from convmlp_client.images import ImageInput
from convmlp_client.many import Flow, Outcome, each_awaited, progress_bar
from convmlp_client.parameters import (
    ClassifyParameters,
    DetectParameters,
    Question,
    SegmentParameters,
    classify_params,
    detect_params,
    segment_params,
)
from convmlp_client.requester import USER_AGENT, make_core
from convmlp_client.results import Classification, Detections, Model, Result, Segmentation
from convmlp_client.retry import Retries
from convmlp_client.transport import Compression, StrPath

I = TypeVar("I", bound=ImageInput)  # noqa: E741
R = TypeVar("R", bound=Result)


class AsyncClient:
    """A service at `http(s)://HOST:PORT` (REST), `grpc://HOST:PORT`, or `grpcs://HOST:PORT` (over TLS).

    It connects when it is first asked, and belongs to that event loop then. Any number of tasks may share it, and
    should: it keeps connections. `async with` it, or `aclose` it.

    timeout_s: of each request, with all its attempts; the service is told. None: the service's own limit.
    api_key: where the service asks for one (default: the environment's CONVMLP_API_KEY).
    retries: how often a request is sent again where that may help, or a `Retries`.
    max_concurrency: requests in hand at a time; more of them wait.
    ca_file: PEM file of the authorities that a server's certificate must come from (default: the usual ones).
    client_certificate: PEM files of the certificate and the key by which this caller is known (mTLS).
    compression: of messages, over gRPC. Images are compressed already, so it helps with large masks alone.

    Raises ValueError where an argument is wrong, ImportError where gRPC is not installed, OSError where a file of
    certificates cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = 30.0,
        api_key: str | None = None,
        retries: int | Retries = 3,
        max_concurrency: int = 64,
        user_agent: str = USER_AGENT,
        ca_file: StrPath | None = None,
        client_certificate: tuple[StrPath, StrPath] | None = None,
        compression: Compression | None = None,
    ) -> None:
        self._core = make_core(
            url,
            timeout_s=timeout_s,
            api_key=api_key,
            retries=retries,
            max_concurrency=max_concurrency,
            user_agent=user_agent,
            ca_file=ca_file,
            client_certificate=client_certificate,
            compression=compression,
        )

    async def classify(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[ClassifyParameters]
    ) -> Classification:
        """What a picture shows. `timeout_s`: for this request alone. So do the next two.

        Raises:
            ClientError: the service's error, or no answer came; see `convmlp_client.errors`.
            TypeError, ValueError, OSError: the image cannot be read; as `convmlp_client.images.encoded_image`.
        """
        return await self._core.predict(classify_params(parameters), image, timeout_s)

    async def detect(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[DetectParameters]
    ) -> Detections:
        """The objects in a picture."""
        return await self._core.predict(detect_params(parameters), image, timeout_s)

    async def segment(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[SegmentParameters]
    ) -> Segmentation:
        """A class for each pixel of a picture."""
        return await self._core.predict(segment_params(parameters), image, timeout_s)

    def classify_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[ClassifyParameters],
    ) -> AsyncGenerator[Outcome[I, Classification], None]:
        """What each of many pictures shows: an outcome for each, `concurrency` of them asked about at a time.

        `images` is read only as fast as outcomes are taken, so it may be endless. With `ordered` outcomes come in its
        order, without as soon as they are there. An image's error is in its outcome; with `raise_errors` the first
        one ends it all. `progress` draws a bar on stderr. `timeout_s` is for each image, from its turn on.

        To stop early, leave the loop; what is in hand is cancelled then. (`contextlib.aclosing` does it at once.)
        So do the next two. Over gRPC all travel in one stream.

        Raises:
            Exception: what `images` raises, after the outcomes before it.
        """
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(classify_params(parameters), images, flow)

    def detect_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[DetectParameters],
    ) -> AsyncGenerator[Outcome[I, Detections], None]:
        """The objects in each of many pictures."""
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(detect_params(parameters), images, flow)

    def segment_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[SegmentParameters],
    ) -> AsyncGenerator[Outcome[I, Segmentation], None]:
        """A class for each pixel of each of many pictures."""
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(segment_params(parameters), images, flow)

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """The models that are served. Raises ClientError."""
        return await self._core.models(timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether predictions are answered now; False as well where nobody is there.

        Raises:
            ClientError: who is there is not this service, or does not let us in.
        """
        return await self._core.ready(timeout_s)

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as predictions are answered.

        Raises:
            DeadlineExceeded: they were not by then; it says why.
            ClientError: as `ready`.
        """
        await self._core.wait_until_ready(timeout_s)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._core.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _many(
        self, question: Question[R], images: Iterable[I] | AsyncIterable[I], flow: Flow
    ) -> AsyncGenerator[Outcome[I, R], None]:
        session = await self._core.session(question)

        async def put(image: I) -> R:
            return await self._core.put(session.predict, image, flow.timeout_s)

        concurrency = min(flow.concurrency, self._core.max_concurrency)
        outcomes = each_awaited(images, put, concurrency, ordered=flow.ordered)
        try:
            async with aclosing(outcomes):
                with progress_bar(flow.progress, images) as advance:
                    async for outcome in outcomes:
                        advance()
                        if flow.raise_errors and outcome.error is not None:
                            raise outcome.error
                        yield outcome
        finally:
            await self._core.end(session)
