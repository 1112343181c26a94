from __future__ import annotations

import pytest

from tests.model.zoo.fetching import CONTENT, OTHER, Client, assert_whole
from tests.model.zoo.server import OLD_DATE, Act, Server, serving


def test_cuts_are_gone_on_from(client: Client, server: Server) -> None:
    """After each of several cuts only the missing rest is asked for, and the pauses do not grow while bytes come."""
    server.acts = [Act(cut_after=100_000), Act(cut_after=50_000), Act(cut_after=70_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=220000-"]
    assert all(0.5 <= wait_s <= 1.0 for wait_s in client.waits_s)
    sizes = [size for size, _ in client.seen]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("act", [Act(ranges=False), Act(etag=None), Act(etag='W/"one"'), Act(etag='"n\xf6"')])
def test_where_no_part_can_be_had(client: Client, server: Server, act: Act) -> None:
    """A server that ignores Range, or cannot tell versions apart for sure, sends the whole file again."""
    cut = Act(cut_after=100_000, etag=act.etag)
    server.acts, server.then = [cut], act
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


def test_modification_date_as_validator(client: Client, server: Server) -> None:
    """Without an ETag, Last-Modified says whether the part still fits."""
    server.acts = [Act(etag=None, last_modified=OLD_DATE, cut_after=100_000)]
    server.then = Act(etag=None, last_modified=OLD_DATE)
    client.fetch(server.url)
    assert_whole(client)
    assert server.requests[1]["If-Range"] == OLD_DATE
    assert server.ranges[1] == "bytes=100000-"


def test_a_date_of_this_very_second_is_no_validator(client: Client, server: Server) -> None:
    """A file modified in the second of the answer may change within it, so its rest is not asked for."""
    server.acts = [Act(etag=None, last_modified=OLD_DATE, date=OLD_DATE, cut_after=100_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, None]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_is_not_glued(client: Client, server: Server, if_range: bool) -> None:
    """A new version replaces what came of the old one, even where the server sends its rest all the same."""
    server.acts = [Act(cut_after=100_000)]
    server.then = Act(content=OTHER, etag='"two"', if_range=if_range)
    client.fetch(server.url)
    assert_whole(client, OTHER)


@pytest.mark.parametrize(
    "content_range", ["bytes 99999-299999/300000", "bytes 100000-299999/300001", "bytes */300000", "chickens", ""]
)
def test_a_part_that_was_not_asked_for(client: Client, server: Server, content_range: str) -> None:
    """A partial answer of another place or size is not appended; the file comes anew."""
    server.acts = [Act(cut_after=100_000), Act(headers={"Content-Range": content_range})]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


@pytest.mark.parametrize(("size", "asked_next"), [(200_000, "bytes=200000-"), (300_001, None)])
def test_a_part_of_another_length(client: Client, server: Server, size: int, asked_next: str | None) -> None:
    """A rest that ends early is gone on from; one that is longer than the file discredits what came."""
    rest = {"Content-Range": "bytes 100000-299999/300000"}
    server.acts = [Act(cut_after=100_000), Act(content=(CONTENT + b"!")[:size], headers=rest)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", asked_next]


def test_a_part_that_the_server_has_not(client: Client, server: Server) -> None:
    """416 lets the part go, and the file comes anew."""
    server.acts = [Act(cut_after=100_000), Act(status=416)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, "bytes=100000-", None]


def test_a_part_of_another_url(client: Client, server: Server) -> None:
    """What came from one address is not gone on from at another, even with the same ETag."""
    server.acts = [Act(cut_after=100_000), Act(status=404)]
    client.fails(server.url)
    with serving(OTHER) as mirror:
        client.fetch(mirror.url)
    assert_whole(client, OTHER)
    assert mirror.ranges == [None]


def test_a_part_that_only_wanted_its_name(client: Client, server: Server) -> None:
    """Bytes that were all there when the process ended are taken without asking for them again."""
    server.acts = [Act(cut_after=299_999), Act(status=404)]
    client.fails(server.url)
    with client.part.open("ab") as file:
        file.write(CONTENT[-1:])
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("torn", [b"", b'{"url": "ht', b"[]", b"\xff"])
def test_a_part_of_unknown_origin(client: Client, server: Server, torn: bytes) -> None:
    """A part whose description is torn counts as nothing."""
    server.acts = [Act(cut_after=100_000), Act(status=404)]
    client.fails(server.url)
    client.part.with_name("weights.pth.part.json").write_bytes(torn)
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges[-1] is None
