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
import typer

from model.errors import BundleInvalid, ConvMLPError
from model.types import Task
from service.cli.answer_table import print_answer
from service.cli.answerer import Answer, Answerer, NoAnswer
from service.cli.pictures import FORMATS, Picture
from service.cli.words import complain, plain
from service.errors import BadParameter, ModelNotFound, Unauthenticated, Unavailable
from service.frontend.rest.errors import problem_of
from service.frontend.rest.schemas import RESULT_OF_TASK, encode_error

HOPELESS = (NoAnswer, Unavailable, ModelNotFound, BadParameter, Unauthenticated, BundleInvalid)
"""Errors that every other picture would meet as well."""

T = TypeVar("T")


async def print_tables(answerer: Answerer, task: Task, pictures: Sequence[Picture]) -> bool:
    """A table for each picture; whether all were answered.

    Raises:
        NoAnswer: what came is no answer.
    """
    complete = True
    async for picture, outcome in _each(answerer.answer, pictures, answerer.concurrency):
        if isinstance(outcome, ConvMLPError):
            complete = False
            continue
        try:
            result = msgspec.json.decode(outcome.results[0], type=RESULT_OF_TASK[task])
        except msgspec.ValidationError as error:
            raise NoAnswer(f"the answer has another form than this version reads: {error}; try --json") from error
        print_answer(picture.name, outcome.model, result)
    return complete


async def print_json(answerer: Answerer, task: Task, pictures: Sequence[Picture]) -> bool:
    """The REST answer for all pictures, if any was answered; whether all were.

    Raises:
        NoAnswer: different models answered, which one document cannot tell.
    """
    results: list[msgspec.Raw] = []
    models: set[str] = set()
    complete = True
    async for picture, outcome in _each(answerer.answer, pictures, answerer.concurrency):
        if isinstance(outcome, ConvMLPError):
            complete = False
            results.append(msgspec.Raw(encode_error(problem_of(outcome, quote(picture.name, errors="replace")))))
        else:
            models.add(outcome.model)
            results += outcome.results
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
        return await answerer.draw(image, picture_format)

    complete = True
    async for picture, outcome in _each(draw, pictures, answerer.concurrency):
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


async def _each(
    ask: Callable[[bytes], Awaitable[T]], pictures: Sequence[Picture], concurrency: int
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
