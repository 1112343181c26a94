"""The synchronous client: the same requests, run by an event loop in its own thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing, suppress
from types import TracebackType
from typing import Self, TypeVar, Unpack

from convmlp_client.images import ImageInput
from convmlp_client.loop_thread import LoopThread
from convmlp_client.many import ManyOptions, Outcome, map_futures, progress_bar
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


class Client(BaseClient):
    """A client of one service: http(s)://HOST:PORT (REST), grpc://HOST:PORT, or grpcs://HOST:PORT (gRPC over TLS).

    `AsyncClient` documents the arguments and methods. Any number of threads may share one client, also threads that run
    an event loop. The client starts its own thread at the first request; a process that is forked later needs its own
    client. Close it with `with` or `close`.
    """

    def _open(self) -> None:
        self._thread = LoopThread()

    def classify(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[ClassifyParameters]
    ) -> Classification:
        """Classify an image; see `AsyncClient.classify`."""
        return self._thread.call(self._requester.predict, classify_params(parameters), image, timeout_s)

    def detect(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[DetectParameters]
    ) -> Detections:
        """Find the objects in an image; see `AsyncClient.detect`."""
        return self._thread.call(self._requester.predict, detect_params(parameters), image, timeout_s)

    def segment(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[SegmentParameters]
    ) -> Segmentation:
        """Assign a class to each pixel of an image; see `AsyncClient.segment`."""
        return self._thread.call(self._requester.predict, segment_params(parameters), image, timeout_s)

    def embed(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[EmbedParameters]
    ) -> Embedding:
        """The pooled features of an image as a vector; see `AsyncClient.embed`."""
        return self._thread.call(self._requester.predict, embed_params(parameters), image, timeout_s)

    def analyze(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[AnalyzeParameters]
    ) -> Analysis:
        """The answers of several tasks, or models, for an image that is sent once; see `AsyncClient.analyze`."""
        return self._thread.call(self._requester.predict, analyze_params(parameters), image, timeout_s)

    def classify_many(
        self,
        images: Iterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[ClassifyParameters],
    ) -> Generator[Outcome[I, Classification], None, None]:
        """Classify many images; see `AsyncClient.classify_many`.

        The source is read in the consumer's thread while it waits for an outcome. So a source that blocks also delays
        outcomes.
        """
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(classify_params(parameters), images, options)

    def detect_many(
        self,
        images: Iterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[DetectParameters],
    ) -> Generator[Outcome[I, Detections], None, None]:
        """Find the objects in many images; see `AsyncClient.detect_many`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(detect_params(parameters), images, options)

    def segment_many(
        self,
        images: Iterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[SegmentParameters],
    ) -> Generator[Outcome[I, Segmentation], None, None]:
        """Assign a class to each pixel of many images; see `AsyncClient.segment_many`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(segment_params(parameters), images, options)

    def embed_many(
        self,
        images: Iterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[EmbedParameters],
    ) -> Generator[Outcome[I, Embedding], None, None]:
        """The vectors of many images; see `AsyncClient.embed_many`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(embed_params(parameters), images, options)

    def analyze_many(
        self,
        images: Iterable[I],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        progress: bool = False,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **parameters: Unpack[AnalyzeParameters],
    ) -> Generator[Outcome[I, Analysis], None, None]:
        """The answers of several tasks, or models, for many images; see `AsyncClient.analyze_many`."""
        options = ManyOptions(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(analyze_params(parameters), images, options)

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """List the models of the service."""
        return self._thread.call(self._requester.models, timeout_s)

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the service accepts predictions now; see `AsyncClient.ready`."""
        return self._thread.call(self._requester.ready, timeout_s)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the service accepts predictions; see `AsyncClient.wait_until_ready`."""
        self._thread.call(self._requester.wait_until_ready, timeout_s)

    def close(self) -> None:
        """Close all connections and end the thread. Running requests of other threads end with ClientClosed."""
        self._thread.close(self._requester.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _many(
        self, params: PredictParams[R], images: Iterable[I], options: ManyOptions
    ) -> Generator[Outcome[I, R], None, None]:
        stream = self._thread.call(self._requester.open_stream, params)

        def start(image: I) -> Future[R]:
            return self._thread.start(self._requester.predict_in, stream, image, options.timeout_s)

        concurrency = min(options.concurrency, self._requester.max_concurrency)
        try:
            with (
                closing(map_futures(images, start, concurrency, ordered=options.ordered)) as outcomes,
                progress_bar(options.progress, images) as advance,
            ):
                for outcome in outcomes:
                    advance()
                    if options.raise_errors and outcome.error is not None:
                        raise outcome.error
                    yield outcome
        finally:
            # Not awaited, because the garbage collector may run this in any thread, the loop's own included. `close`
            # waits for it. A closed client has closed the stream already.
            with suppress(RuntimeError):
                self._thread.start(self._requester.close_stream, stream)
