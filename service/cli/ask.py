"""Puts each picture to whoever answers, and gives the answers in one of three forms.

What is wrong with one picture costs the others nothing. What would be wrong with every picture, such as a service
that is not there, is met once: the rest is not asked, and what was answered before is still told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
import typer

from convmlp_client.results import Result
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid, ConvMLPError
from model.types import Image, Task
from service.cli.answer_table import print_answer
from service.cli.answerer import Answerer, NoAnswer
from service.cli.pictures import FORMATS, MAX_READ_BYTES, Picture
from service.cli.progress import told_progress
from service.cli.words import complain, plain
from service.errors import BadParameter, Forbidden, ModelNotFound, Unauthenticated, Unavailable
from service.frontend.api.rest.schemas import Answer, encode_error
from service.frontend.core.overlay import PictureFormat, encode_picture, scaled_down
from service.frontend.http.problems import problem_of

HOPELESS = (NoAnswer, Unavailable, ModelNotFound, BadParameter, Unauthenticated, Forbidden, BundleInvalid)
"""Errors that every other picture would meet as well."""

T = TypeVar("T")


async def print_tables(answerer: Answerer, pictures: Sequence[Picture]) -> bool:
    """A table for each picture; whether all were answered."""
    complete = True
    async for picture, outcome in _each(answerer.answer, pictures, answerer.concurrency, printing=True):
        if isinstance(outcome, ConvMLPError):
            complete = False
        else:
            print_answer(picture.name, outcome)
    return complete


async def print_json(answerer: Answerer, task: Task, pictures: Sequence[Picture]) -> bool:
    """The REST answer for all pictures, if any was answered; whether all were.

    Raises:
        NoAnswer: different models answered, which one document cannot tell.
    """
    results: list[msgspec.Raw] = []
    models: set[str] = set()
    complete = True
    async for picture, outcome in _each(answerer.answer, pictures, answerer.concurrency, printing=False):
        if isinstance(outcome, ConvMLPError):
            complete = False
            results.append(msgspec.Raw(encode_error(problem_of(outcome, quote(picture.name, errors="replace")))))
        else:
            models.add(outcome.meta.model)
            results.append(msgspec.Raw(msgspec.json.encode(outcome.to_dict())))
    if len(models) > 1:
        raise NoAnswer(f"the service changed its model meanwhile ({', '.join(sorted(models))}); name one with --model")
    if models:
        typer.echo(msgspec.json.encode(Answer(models.pop(), task, results)))
    return complete


async def draw_all(answerer: Answerer, pictures: Sequence[Picture], paths: Sequence[Path]) -> bool:
    """Each picture with its answer drawn on it, into its file; whether all were answered and written."""
    picture_format = FORMATS[paths[0].suffix.lower()]
    target_of = dict(zip(pictures, paths, strict=True))

    async def draw(image: bytes) -> bytes:
        return await asyncio.to_thread(_drawn, image, await answerer.answer(image), picture_format)

    complete = True
    async for picture, outcome in _each(draw, pictures, answerer.concurrency, printing=True):
        if isinstance(outcome, ConvMLPError):
            complete = False
            continue
        target = target_of[picture]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(outcome)
        except OSError as error:
            complain(f"{target}: cannot be written: {error.strerror}")
            complete = False
        else:
            typer.echo(plain(f"{picture.name} -> {target}"))
    return complete


def _drawn(image: bytes, result: Result, picture_format: PictureFormat) -> bytes:
    # Decoded as the service does it, so that the answer fits whatever the file is like.
    picture = decode(image, DecodeLimits(MAX_READ_BYTES, result.image.width * result.image.height))
    try:
        drawing = result.draw(picture.pixels)
    except ValueError as error:
        raise NoAnswer(f"the answer cannot be drawn: {error}") from error
    return encode_picture(scaled_down(Image(np.asarray(drawing))), picture_format)


async def _each(
    ask: Callable[[bytes], Awaitable[T]], pictures: Sequence[Picture], concurrency: int, *, printing: bool
) -> AsyncIterator[tuple[Picture, T | ConvMLPError]]:
    """The pictures in their order, each with its answer, or with an error that was complained of."""
    slots = asyncio.Semaphore(concurrency)
    hopeless: ConvMLPError | None = None

    async def put(picture: Picture) -> T | ConvMLPError:
        nonlocal hopeless
        async with slots:
            if hopeless is not None:
                return hopeless
            try:
                return await ask(picture.read())
            except HOPELESS as error:
                hopeless = hopeless or error
                return hopeless
            except ConvMLPError as error:
                return error
            finally:
                done()

    with told_progress(len(pictures), printing=printing) as done:
        tasks = [asyncio.create_task(put(picture)) for picture in pictures]
        told = False
        for picture, task in zip(pictures, tasks, strict=True):
            outcome = await task
            if isinstance(outcome, HOPELESS):
                if not told:
                    complain(outcome.detail)
                told = True
            elif isinstance(outcome, ConvMLPError):
                complain(f"{picture.name}: {outcome.detail}")
            yield picture, outcome
