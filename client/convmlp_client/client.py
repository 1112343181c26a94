"""The client for everyone else: the same, run by an event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing, suppress
from types import TracebackType
from typing import Self, TypeVar, Unpack

from convmlp_client.images import ImageInput
from convmlp_client.loop_thread import LoopThread
from convmlp_client.many import Flow, Outcome, each_waited, progress_bar
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


class Client:
    """A service at `http(s)://HOST:PORT` (REST), `grpc://HOST:PORT`, or `grpcs://HOST:PORT` (over TLS).

    Arguments and methods are those of `AsyncClient`, whose docstrings tell more. Any number of threads may share it,
    also those that run an event loop. Its own thread starts when it is first asked; a process that was forked after
    that needs a client of its own. `with` it, or `close` it.
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
        self._thread = LoopThread()
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

    def classify(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[ClassifyParameters]
    ) -> Classification:
        """What a picture shows."""
        return self._thread.call(self._core.predict, classify_params(parameters), image, timeout_s)

    def detect(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[DetectParameters]
    ) -> Detections:
        """The objects in a picture."""
        return self._thread.call(self._core.predict, detect_params(parameters), image, timeout_s)

    def segment(
        self, image: ImageInput, *, timeout_s: float | None = None, **parameters: Unpack[SegmentParameters]
    ) -> Segmentation:
        """A class for each pixel of a picture."""
        return self._thread.call(self._core.predict, segment_params(parameters), image, timeout_s)

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
        """What each of many pictures shows; see `AsyncClient.classify_many`.

        `images` is read in the thread that takes the outcomes, when it takes one: while the source has nothing yet,
        no outcome is given either.
        """
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(classify_params(parameters), images, flow)

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
        """The objects in each of many pictures."""
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(detect_params(parameters), images, flow)

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
        """A class for each pixel of each of many pictures."""
        flow = Flow(concurrency, ordered, progress, raise_errors, timeout_s)
        return self._many(segment_params(parameters), images, flow)

    def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """The models that are served."""
        return self._thread.call(self._core.models, timeout_s)

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether predictions are answered now; False as well where nobody is there."""
        return self._thread.call(self._core.ready, timeout_s)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as predictions are answered; DeadlineExceeded if they are not by then."""
        self._thread.call(self._core.wait_until_ready, timeout_s)

    def close(self) -> None:
        """Close all connections and end the thread. Requests of other threads end with ClientClosed."""
        self._thread.close(self._core.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _many(self, question: Question[R], images: Iterable[I], flow: Flow) -> Generator[Outcome[I, R], None, None]:
        session = self._thread.call(self._core.session, question)

        def start(image: I) -> Future[R]:
            return self._thread.start(self._core.put, session.predict, image, flow.timeout_s)

        concurrency = min(flow.concurrency, self._core.max_concurrency)
        try:
            with (
                closing(each_waited(images, start, concurrency, ordered=flow.ordered)) as outcomes,
                progress_bar(flow.progress, images) as advance,
            ):
                for outcome in outcomes:
                    advance()
                    if flow.raise_errors and outcome.error is not None:
                        raise outcome.error
                    yield outcome
        finally:
            # Not waited for, since this may run wherever an abandoned generator is collected, in the loop's own thread
            # as well; closing the client waits. If it is closed, so is the session.
            with suppress(RuntimeError):
                self._thread.start(self._core.end, session)
