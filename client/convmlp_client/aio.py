"""The asyncio client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, Unpack

from convmlp_client.images import ImageInput
from convmlp_client.many import ManyOptions, Outcome, map_async, progress_bar
from convmlp_client.parameters import (
    AnalyzeParameters,
    ClassifyParameters,
    DetectParameters,
    EmbedParameters,
    PredictParams,
    SegmentParameters,
    analyze_params,
    classify_params,
    detect_params,
    embed_params,
    segment_params,
)
from convmlp_client.requester import BaseClient
from convmlp_client.results import (
    Analysis,
    AnyResult,
    Classification,
    Detections,
    Embedding,
    Model,
    Segmentation,
)

I = TypeVar("I", bound=ImageInput)  # noqa: E741
R = TypeVar("R", bound=AnyResult)


class AsyncClient(BaseClient):
    """A client of one service: http(s)://HOST:PORT (REST), grpc://HOST:PORT, or grpcs://HOST:PORT (gRPC over TLS).

    The client connects at its first request, and belongs to that event loop from then on. Share one client among all
    tasks, because it keeps connections open. Close it with `async with` or `aclose`.

    timeout_s: time limit of a request in seconds, all attempts included. The service receives it too. None: the
        service's own limit.
    api_key: API key of the service (default: the environment variable CONVMLP_API_KEY).
    retries: maximum number of further attempts of a request that may succeed later, or a `Retries`.
    max_concurrency: maximum number of concurrent requests. Further requests wait.
    user_agent: value of the User-Agent header.
    ca_file: PEM file of the certificate authorities that are trusted (default: those of httpx2 or gRPC).
    client_certificate: PEM files of the client's certificate and private key, for mutual TLS.
    compression: compression of gRPC messages. Images are compressed already, so only large masks become smaller.

    Raises:
        ValueError: an argument is out of range, or does not apply to the URL's scheme.
        ImportError: gRPC is not installed.
        OSError: a certificate or key cannot be read.
    """

    async def classify(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[ClassifyParameters]
    ) -> Classification:
        """Classify an image.

        parameters: see `ClassifyParameters`: model, top_k.
        timeout_s: time limit of this request (default: the client's).

        Raises:
            ClientError: the service's error, or there was no reply; see `convmlp_client.errors`.
            ClientClosed: the client is closed.
            TypeError, ValueError, OSError: the image cannot be read; as `convmlp_client.images.encoded_image`.
        """
        return await self._requester.predict(classify_params(parameters), image, timeout_s)

    async def detect(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[DetectParameters]
    ) -> Detections:
        """Find the objects in an image. Arguments and errors as `classify`.

        parameters: see `DetectParameters`: model, score_threshold, max_detections, classes,
                iou_threshold, agnostic_nms, min_area, tiles, tile_overlap, masks, mask_format.
        """
        return await self._requester.predict(detect_params(parameters), image, timeout_s)

    async def segment(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[SegmentParameters]
    ) -> Segmentation:
        """Assign a class to each pixel of an image. Arguments and errors as `classify`.

        parameters: see `SegmentParameters`: model, classes, min_area, tiles, tile_overlap, masks,
                mask_format.
        """
        return await self._requester.predict(segment_params(parameters), image, timeout_s)

    async def embed(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[EmbedParameters]
    ) -> Embedding:
        """The pooled features of an image as a vector. Arguments and errors as `classify`.

        parameters: see `EmbedParameters`: model, normalize.
        """
        return await self._requester.predict(embed_params(parameters), image, timeout_s)

    async def analyze(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[AnalyzeParameters]
    ) -> Analysis:
        """The answers of several tasks, or models, for an image that is sent once. Arguments and errors as `classify`.

        parameters: see `AnalyzeParameters`: tasks or models; and those of the tasks.
        """
        return await self._requester.predict(analyze_params(parameters), image, timeout_s)

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
        """Classify many images; yields one outcome per image.

        The source is read only as fast as outcomes are consumed, so it may be endless. Over gRPC all images share one
        stream. To stop early, leave the loop: that cancels the running requests. (`contextlib.aclosing` cancels them
        at once, otherwise the garbage collector does.)

        images: the source, synchronous or asynchronous.
        concurrency: maximum number of concurrent requests; `max_concurrency` of the client is a further limit.
        ordered: True for outcomes in the order of the images, False for outcomes as they arrive.
        progress: True for a progress bar on stderr.
        raise_errors: True to raise the first error of an image. False leaves it in the image's outcome.
        timeout_s: time limit of each image, from the start of its request (default: the client's).
        parameters: as `classify`.

        Raises:
            ClientClosed: the client was closed.
            ImportError: `progress` needs rich, which is not installed.
            Exception: as `images` raises it, after the outcomes of the images before.
        """
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(classify_params(parameters), images, options)

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
        """Find the objects in many images. Arguments as `classify_many` and `detect`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(detect_params(parameters), images, options)

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
        """Assign a class to each pixel of many images. Arguments as `classify_many` and `segment`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(segment_params(parameters), images, options)

    def embed_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[EmbedParameters],
    ) -> AsyncGenerator[Outcome[I, Embedding], None]:
        """The vectors of many images. Arguments as `classify_many` and `embed`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(embed_params(parameters), images, options)

    def analyze_many(
        self,
        images: Iterable[I] | AsyncIterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[AnalyzeParameters],
    ) -> AsyncGenerator[Outcome[I, Analysis], None]:
        """The answers of several tasks, or models, for many images. Arguments as `classify_many` and `analyze`.

        An outcome has an error if its image cannot be read, or no model answers.
        """
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(analyze_params(parameters), images, options)

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """List the models of the service. Raises ClientError."""
        return await self._requester.models(timeout_s)

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service accepts predictions now. False if the client cannot connect.

        Raises:
            ClientError: the reply is not from this service, or the service refuses access.
        """
        return await self._requester.ready(timeout_s)

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service accepts predictions.

        Raises:
            DeadlineExceeded: the service was not ready in time; the detail has the reason.
            ClientError: as `ready`.
        """
        await self._requester.wait_until_ready(timeout_s)

    async def aclose(self) -> None:
        """Close all connections. Running requests end with ClientClosed."""
        await self._requester.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _many(
        self, params: PredictParams[R], images: Iterable[I] | AsyncIterable[I], options: ManyOptions
    ) -> AsyncGenerator[Outcome[I, R], None]:
        stream = await self._requester.open_stream(params)

        async def predict(image: I) -> R:
            return await self._requester.predict_in(stream, image, options.timeout_s)

        concurrency = min(options.concurrency, self._requester.max_concurrency)
        outcomes = map_async(images, predict, concurrency, ordered=options.ordered)
        try:
            async with aclosing(outcomes):
                with progress_bar(options.progress, images) as advance:
                    async for outcome in outcomes:
                        advance()
                        if options.raise_errors and outcome.error is not None:
                            raise outcome.error
                        yield outcome
        finally:
            await self._requester.close_stream(stream)
