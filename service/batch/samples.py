"""Samples: a picture's id with its encoded bytes, or the error of one that cannot be read. Units give them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from model.errors import ImageTooLarge, ImageUndecodable
from service.batch.storage import Place

READ_AHEAD = 8
"""Objects of a store that are read ahead: a request takes longer than a picture."""

SampleError = ImageUndecodable | ImageTooLarge


class Sample(NamedTuple):
    """A picture of a source."""

    id: str
    data: bytes | SampleError


class Unit(Protocol):
    """Pictures that one thread reads and scores, one after the other. It is sent to other processes."""

    @property
    def pictures(self) -> int | None:
        """How many there are; None if only reading the shard shows it."""
        ...

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        """The pictures but those whose ids are `done`.

        Raises:
            StorageFailed: an object store does not answer, or refuses.
        """
        ...


@dataclass(frozen=True, slots=True)
class FilesUnit:
    """Single files, with their ids."""

    place: Place
    names: tuple[str, ...]
    ids: tuple[str, ...]

    @property
    def pictures(self) -> int:
        return len(self.names)

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        pending = [(name, one) for name, one in zip(self.names, self.ids, strict=True) if one not in done]
        if not self.place.is_remote:
            for name, one in pending:
                yield read_sample(self.place, name, one)
            return
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as threads:
            reading: deque[Future[Sample]] = deque()
            for name, one in pending:
                reading.append(threads.submit(read_sample, self.place, name, one))
                if len(reading) > READ_AHEAD:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()


def read_sample(place: Place, name: str, sample_id: str) -> Sample:
    """Raises StorageFailed."""
    try:
        # A list may name objects of a store, wherever the list lies.
        if "://" in name and not place.is_remote:
            place = Place(name.rpartition("/")[0], place.endpoint_url)
        return Sample(sample_id, place.read(name))
    except (ImageUndecodable, ImageTooLarge) as error:
        return Sample(sample_id, error)
