"""Names and ids of millions of pictures in little memory: some 20 bytes each."""

from __future__ import annotations

import pickle
import re
import threading
import zlib
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np

from service.batch.storage import TARS

BLOCK_NAMES = 1024
RECENT_IDS = 1 << 16
SHARD_BYTES, ID_BYTES = 8, 12
"""Of a digest: two of a billion ids are equal with a probability of 10⁻¹¹."""
_DIGEST = f"S{SHARD_BYTES + ID_BYTES}"
_SHARD = re.compile(rf"(?:.*?(?:{'|'.join(map(re.escape, TARS))})/)?", re.IGNORECASE | re.DOTALL)


class Names:
    """Names in their order, compressed."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[str] = []
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._last.append(name)
        if len(self._last) == BLOCK_NAMES:
            self._blocks.append(packed(self._last))
            self._last = []

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK_NAMES + len(self._last)

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from unpacked(block)
        yield from self._last


class IdSet:
    """A set of ids, of which it has digests alone. Any thread may use it."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []
        """Arrays of digests, each at least twice as long as the next."""
        self._lock = threading.Lock()
        for one in ids:
            self.add(one)

    def add(self, sample_id: str) -> bool:
        """Whether it is new."""
        digest = digest_of(sample_id)
        with self._lock:
            if self._has(digest):
                return False
            self._recent.add(digest)
            if len(self._recent) == RECENT_IDS:
                self._sort_recent()
        return True

    def __contains__(self, sample_id: str) -> bool:
        digest = digest_of(sample_id)
        with self._lock:
            return self._has(digest)

    def __len__(self) -> int:
        return len(self._recent) + sum(map(len, self._sorted))

    def copy(self) -> IdSet:
        """As it is now. It shares the memory of all but the last ids."""
        copied = IdSet()
        with self._lock:
            copied._recent, copied._sorted = set(self._recent), list(self._sorted)
        return copied

    def digests_of_shard(self, shard_id: str) -> frozenset[bytes]:
        """The digests of the ids of a tar shard's members; perhaps of a few others as well."""
        first = digest_of(f"{shard_id}/")[:SHARD_BYTES]
        last = first + b"\xff" * ID_BYTES
        with self._lock:
            found = {digest for digest in self._recent if digest.startswith(first)}
            for digests in self._sorted:
                start, end = digests.searchsorted(np.array([first, last], _DIGEST), side="left")
                found.update(digest.ljust(len(last), b"\0") for digest in digests[start : end + 1].tolist())
        return frozenset(found)

    def _has(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        wanted = np.array(digest, _DIGEST)
        for digests in self._sorted:
            position = digests.searchsorted(wanted)
            if position < len(digests) and digests[position] == wanted:
                return True
        return False

    def _sort_recent(self) -> None:
        digests = np.sort(np.array(list(self._recent), _DIGEST))
        self._recent = set()
        while self._sorted and len(self._sorted[-1]) < 2 * len(digests):
            digests = np.sort(np.concatenate([self._sorted.pop(), digests]), kind="stable")
        self._sorted.append(digests)


def digest_of(sample_id: str) -> bytes:
    """Begins alike for all members of a tar shard."""
    match = _SHARD.match(sample_id)
    assert match is not None  # it may be empty
    shard, whole = (text.encode("utf-8", "surrogatepass") for text in (match[0], sample_id))
    return blake2b(shard, digest_size=SHARD_BYTES).digest() + blake2b(whole, digest_size=ID_BYTES).digest()


def packed(value: object) -> bytes:
    """An object in few bytes, for `unpacked`."""
    return zlib.compress(pickle.dumps(value), 1)


def unpacked(data: bytes) -> Any:  # noqa: ANN401  (what was packed)
    return pickle.loads(zlib.decompress(data))
