from __future__ import annotations

import random
import tracemalloc

import pytest

from service.batch import compact
from service.batch.compact import IdSet, Names, digest_of


def test_names_keep_their_order() -> None:
    """Any text that a file's name can be, bytes that are no UTF-8 included, as often as they are read."""
    given = [f"folder/{number}.jpg" for number in range(5000)] + ["a\nb.jpg", "\udcff.png", "", "grüße.jpg"]
    names = Names(given)
    assert len(names) == len(given)
    assert list(names) == list(names) == given


def test_ids_are_known_once_added() -> None:
    """Whether they were added lately or long ago; a copy does not follow."""
    ids = [f"{number}.jpg" for number in range(3 * compact.RECENT_IDS + 7)]
    random.Random(1).shuffle(ids)
    known = IdSet(ids[:-10])
    assert len(known) == len(ids) - 10
    assert all(one in known for one in ids[:-10:1000])
    assert not any(one in known for one in ids[-10:])
    assert not any(known.add(one) for one in ids[:-10:1000])
    copied = known.copy()
    assert all(known.add(one) for one in ids[-10:])
    assert (len(known), len(copied), ids[-1] in copied) == (len(ids), len(ids) - 10, False)


@pytest.mark.parametrize("more", [0, compact.RECENT_IDS + 5])
def test_the_ids_of_a_shard(more: int) -> None:
    """All members of one tar file, in folders or not, and of no other file but by chance."""
    members = [f"in/0.tar.gz/{number}.jpg" for number in range(900)] + ["in/0.tar.gz/below/x.jpg"]
    others = [f"{number}.jpg" for number in range(more)] + ["in/1.tar.gz/0.jpg", "in/0.tar.gz"]
    found = IdSet([*members, *others]).digests_of_shard("in/0.tar.gz")
    assert set(map(digest_of, members)) <= found
    assert len(found) <= len(members) + 1


def test_a_picture_takes_some_twenty_bytes() -> None:
    """Of its name and of its id each: 300 MB for ten million pictures and not gigabytes."""
    count = 200_000
    tracemalloc.start()
    try:
        names = Names(f"photos/2026/{number:08d}-original.jpg" for number in range(count))
        after_names, _ = tracemalloc.get_traced_memory()
        known = IdSet(names)
        after_ids, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(known) == len(names) == count
    assert after_names / count < 25
    # Beside the digests in arrays those of the last ids are objects, however many there are.
    assert after_ids - after_names < 20 * count + 120 * compact.RECENT_IDS
