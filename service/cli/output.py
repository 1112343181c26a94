"""Predicts every image of a command, and prints the results or draws them into files.

An error of one image affects no other image. An error that every image would meet, such as a service that is not
there, ends the command: it is printed once, and results that came before are still printed. So are those that came
before Ctrl-C.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from convmlp_client.drawing import Palette, class_colour
from convmlp_client.errors import ClientError
from convmlp_client.results import Analysis, Embedding, Result, Segmentation
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid, ConvMLPError
from model.types import Image
from service.cli.backends import AnalysisBackend, Backend, NoAnswer
from service.cli.console import image_progress, print_error, print_line, printable
from service.cli.image_reader import ImageReader
from service.cli.inputs import FORMATS, MAX_READ_BYTES, ImageFile
from service.cli.printers import Printer
from service.errors import BadParameter, Forbidden, ModelNotFound, Unauthenticated, Unavailable, error_from_code
from service.frontend.core.overlay import (
    PictureFormat,
    encode_class_colours,
    encode_label_map,
    encode_picture,
    scaled_down,
)
from service.frontend.core.parameters import View

FATAL = (NoAnswer, Unavailable, ModelNotFound, BadParameter, Unauthenticated, Forbidden, BundleInvalid)
"""Errors that every other image would meet as well."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

RESULTS_AHEAD = 8
"""Images that are read, in progress, or wait for an earlier one, for each one that is worth predicting at once."""

T = TypeVar("T")


async def print_results(backend: Backend | AnalysisBackend, images: Sequence[ImageFile], printer: Printer) -> int:
    """Predict the images and print each result. Returns as `predict_all`.

    Raises:
        NoAnswer: as `Printer.end`.
    """
    status = await predict_all(
        backend.predict, images, backend.concurrency, lambda one, out: printer.add(one.name, out)
    )
    printer.end()
    return status


class Palettes:
    """The colours of classes by the models' names. They are read again when a model answers that is not among them."""

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, Palette | None]]]) -> None:
        self._read = read
        self._known: Mapping[str, Palette | None] = {}

    async def of(self, result: Result | Analysis) -> Mapping[str, Palette | None]:
        """Those of the models that answered; a model that is not served any more has none. Raises ConvMLPError."""
        models = {*result.models.values()} if isinstance(result, Analysis) else {result.meta.model}
        if not models <= self._known.keys():
            self._known = {**dict.fromkeys(models), **await self._read()}
        return self._known


async def save_drawings(
    backend: Backend | AnalysisBackend, images: Sequence[ImageFile], paths: Sequence[Path], view: View | None = None
) -> int:
    """Draw each result on its image, or take `view` of it, and write it to its path. Returns as `predict_all`."""
    picture_format = FORMATS[paths[0].suffix.lower()]
    target_of = dict(zip(images, paths, strict=True))
    palettes = Palettes(backend.palettes)

    async def draw(image: bytes) -> bytes:
        result = await backend.predict(image)
        known = await palettes.of(result)
        if view is not None:
            return await asyncio.to_thread(_view_of, result, view, known)
        return await asyncio.to_thread(drawn, image, result, picture_format, known)

    def write(image: ImageFile, outcome: bytes | ConvMLPError) -> bool:
        return not isinstance(outcome, ConvMLPError) and _write(image, target_of[image], outcome)

    return await predict_all(draw, images, backend.concurrency, write)


def _write(image: ImageFile, target: Path, drawing: bytes) -> bool:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(drawing)
    except OSError as error:
        print_error(f"{target}: cannot be written: {error.strerror}")
        return False
    print_line(printable(f"{image.name} -> {target}"))
    return True


def drawn(
    image: bytes, result: Result | Analysis, picture_format: PictureFormat, palettes: Mapping[str, Palette | None]
) -> bytes:
    """An image with a result drawn on it, encoded. Raises NoAnswer where it cannot be drawn."""
    assert not isinstance(result, Embedding)
    if isinstance(result, Analysis):
        failed = next((answer for answer in result.answers.values() if isinstance(answer, ClientError)), None)
        if failed is not None:  # a drawing cannot show that it is missing
            raise error_from_code(failed.code, failed.detail, failed.retry_after_s)
    # Decoded as the service decodes it, so that the coordinates fit for any orientation.
    picture = decode(image, DecodeLimits(MAX_READ_BYTES, result.image.width * result.image.height))
    try:
        if isinstance(result, Analysis):
            drawing = result.draw(picture.pixels, palettes)
        else:
            drawing = result.draw(picture.pixels, palettes.get(result.meta.model))
    except ValueError as error:
        raise NoAnswer(f"the result cannot be drawn: {error}") from error
    return encode_picture(scaled_down(Image(np.asarray(drawing))), picture_format)


def _view_of(result: Result | Analysis, view: View, palettes: Mapping[str, Palette | None]) -> bytes:
    """The class of each pixel, as its index or in colours, or its confidence, as PNG."""
    assert isinstance(result, Segmentation)
    palette = palettes.get(result.meta.model)
    try:
        match view:
            case View.LABEL_MAP:
                return encode_label_map(result.label_map())
            case View.COLORS:
                colours = {one.index: class_colour(one, palette) for one in result.segments}
                return encode_class_colours(result.label_map(), colours)
            case View.CONFIDENCE:
                return encode_label_map(result.confidence_map())
    except ValueError as error:
        raise NoAnswer(f"the result has no {view} of its pixels: {error}") from error


async def predict_all(
    predict: Callable[[bytes], Awaitable[T]],
    images: Sequence[ImageFile],
    concurrency: int,
    take: Callable[[ImageFile, T | ConvMLPError], bool],
) -> int:
    """Predict the images. `take` gets the result of each in their order, or an error that was printed, and returns
    whether it is complete.

    Returns the exit status: 0, 1 if one is not complete, or INTERRUPTED.
    """
    status, done = 0, 0
    outcomes = _predict_each(predict, images, concurrency)
    try:
        async with aclosing(outcomes):
            async for image, outcome in outcomes:
                status = status if take(image, outcome) else 1
                done += 1
    except asyncio.CancelledError:  # Ctrl-C
        print_error(f"interrupted; {done} of {len(images)} images are done")
        status = INTERRUPTED
    return status


async def _predict_each(
    predict: Callable[[bytes], Awaitable[T]], images: Sequence[ImageFile], concurrency: int
) -> AsyncGenerator[tuple[ImageFile, T | ConvMLPError], None]:
    slots = asyncio.Semaphore(concurrency)
    fatal: ConvMLPError | None = None

    async def outcome_of(image: ImageFile) -> T | ConvMLPError:
        nonlocal fatal
        async with slots:
            if fatal is not None:
                return fatal
            try:
                return await predict(await reader.read(image))
            except FATAL as error:
                fatal = fatal or error
                return fatal
            except ConvMLPError as error:
                return error
            finally:
                advance()

    with image_progress(len(images)) as advance:
        async with ImageReader() as reader:
            printed = False
            waiting: deque[tuple[ImageFile, asyncio.Task[T | ConvMLPError]]] = deque()
            try:
                rest = iter(images)
                while True:
                    # A slow image holds back at most so many results of later ones.
                    for image in islice(rest, RESULTS_AHEAD * concurrency - len(waiting)):
                        waiting.append((image, asyncio.create_task(outcome_of(image))))
                    if not waiting:
                        break
                    image, task = waiting.popleft()
                    outcome = await task
                    if isinstance(outcome, FATAL):
                        if not printed:
                            print_error(_with_wait(outcome))
                        printed = True
                    elif isinstance(outcome, ConvMLPError):
                        print_error(f"{image.name}: {outcome.detail}")
                    yield image, outcome
            finally:
                tasks = [task for _, task in waiting]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _with_wait(error: ConvMLPError) -> str:
    """An error's text; of a service that starts or ends also when to try again."""
    if isinstance(error, Unavailable):
        return f"{error.detail}; try again in {math.ceil(error.retry_after_s)} s"
    return error.detail
