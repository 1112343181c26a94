from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.zoo.download import DownloadFailed, ExpectedHash, TrustedHashes, download
from tests.model.zoo.fetching import CHILD, CONTENT, OTHER, Client, assert_whole, given, sha256
from tests.model.zoo.server import LATER_DATE, OLD_DATE, Act, Server, serving


def test_a_file_comes_whole(client: Client, server: Server) -> None:
    """The target is the server's file, its hash is told, and the progress ends at its size."""
    assert client.fetch(server.url) == sha256(CONTENT)
    assert_whole(client)
    assert client.seen[-1] == (len(CONTENT), len(CONTENT))
    assert client.waits_s == []


def test_more_cuts_than_attempts_in_a_row(client: Client, server: Server) -> None:
    """A line that breaks often, but brings something each time, is not given up."""
    server.then = Act(cut_after=20_000)
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 15


def test_attempts_are_bounded_in_all(client: Client, server: Server) -> None:
    """A server that brings a little each time is given up at last, and what came is kept."""
    server.then = Act(cut_after=10)
    with pytest.raises(DownloadFailed, match="40 bytes are kept"):
        client.fetch(server.url, max_attempts=4)
    assert client.part.read_bytes() == CONTENT[:40]


def test_a_stalled_server_is_left(client: Client, server: Server) -> None:
    """Silence ends an attempt, before the answer as in the middle of it, and the next one gets the rest."""
    client.read_timeout_s = 0.5
    server.acts = [Act(stall_after=0), Act(stall_after=120_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, None, "bytes=120000-"]
    assert all("127.0.0.1 timed out; retrying in " in notice for notice in client.notices)


def test_silence_for_ever(client: Client, server: Server) -> None:
    """Attempts without a byte are bounded, their pauses grow, and the failure says what to do."""
    client.read_timeout_s = 0.2
    server.then = Act(stall_after=0)
    said = client.fails(server.url)
    assert len(server.requests) == 6
    assert all(0.5 * 2**k <= wait_s <= 2**k for k, wait_s in enumerate(client.waits_s))
    assert said == (
        f"cannot download {server.url}: 127.0.0.1 timed out (attempt 6, the last); try again later, "
        "or try another source with --mirror or --url"
    )


@pytest.mark.parametrize("cuts", [[100_000], [100_000, 50_000]])
def test_a_server_that_always_starts_anew(client: Client, server: Server, cuts: list[int]) -> None:
    """Bytes that came before are no progress: never cut any later than the first time, it is given up."""
    server.acts = [Act(ranges=False, cut_after=cut) for cut in cuts * 12]
    client.fails(server.url)
    assert len(server.requests) == 6


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(client: Client, server: Server, status: int) -> None:
    """Answers that may pass are not the last word, and are told."""
    server.acts = [Act(status=status), Act(status=status)]
    client.fetch(server.url)
    assert_whole(client)
    assert f"127.0.0.1 answered {status} " in client.notices[1]


def test_a_server_in_trouble_for_ever(client: Client, server: Server) -> None:
    """It is given up after as many attempts, and the last answer is in the message."""
    server.then = Act(status=500)
    assert "500 Internal Server Error (attempt 6, the last)" in client.fails(server.url)
    assert len(server.requests) == 6


def test_retry_after_is_honoured(client: Client, server: Server) -> None:
    """The pause is at least what the server asks for, in seconds or as a date by the server's own clock."""
    server.acts = [Act(status=503, headers={"Retry-After": wait}) for wait in ("7", LATER_DATE, "soon")]
    server.acts[1] = replace(server.acts[1], date=OLD_DATE)
    client.fetch(server.url)
    assert_whole(client)
    assert client.waits_s[:2] == [7, 40]
    assert client.waits_s[2] <= 4


def test_retry_after_is_bounded(client: Client, server: Server) -> None:
    """A server that wants a long rest is not asked earlier, nor waited for."""
    server.then = Act(status=503, headers={"Retry-After": "3600"})
    assert "asks to retry after 3600 s" in client.fails(server.url)
    assert client.waits_s == []


def test_nothing_there(client: Client) -> None:
    """Where nobody listens, the failure says so after bounded attempts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        said = client.fails(f"http://127.0.0.1:{bound.getsockname()[1]}/weights.pth")
    assert "cannot connect to 127.0.0.1" in said
    assert len(client.waits_s) == 5


@pytest.mark.parametrize("url", ["weights.pth", "file:///etc/passwd", "http://", "http://[::1/x", "http://a b\n/x"])
def test_what_is_no_web_address(client: Client, url: str) -> None:
    """Anything but http(s)://HOST is refused before anything is asked."""
    client.fails(url)
    assert not client.folder.exists()


def test_a_wrong_hash(client: Client, server: Server) -> None:
    """A damaged file is an error that names both hashes, who said so and what to do, and leaves nothing behind."""
    damaged = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    server.then = Act(content=damaged)
    said = client.fails(server.url, given(CONTENT))
    assert f"has SHA-256 {sha256(damaged)}" in said
    assert f"{sha256(CONTENT)} was given with --sha256" in said
    assert not client.part.exists()


def test_a_failure_leaves_the_old_target(client: Client, server: Server) -> None:
    """A target that is there stays as it was until a new one is whole and proven."""
    client.folder.mkdir()
    client.target.write_bytes(b"old")
    server.then = Act(content=OTHER)
    with pytest.raises(DownloadFailed):
        client.fetch(server.url, given(CONTENT))
    assert client.target.read_bytes() == b"old"
    server.then = Act()
    client.fetch(server.url, given(CONTENT))
    assert_whole(client)


@pytest.mark.parametrize("text", ["", "abc", "0x" + "0" * 62, "g" * 64, "0" * 65])
def test_what_is_no_hash(text: str) -> None:
    """A hash that cannot be one is refused before anything is fetched."""
    with pytest.raises(DownloadFailed, match="64 hexadecimal digits"):
        ExpectedHash.given(text)


def test_a_hash_in_capitals(client: Client, server: Server) -> None:
    """Hashes are compared as numbers, as other tools may print them."""
    client.fetch(server.url, ExpectedHash.given(f" {sha256(CONTENT).upper()}\n"))
    assert_whole(client)


@pytest.fixture
def child(client: Client, server: Server) -> Iterator[Callable[[], None]]:
    """Another process, in the middle of its download from a server that stalled; called, it is killed."""
    server.acts = [Act(stall_after=200_000)]
    command = [sys.executable, "-c", CHILD, server.url, str(client.target)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 60
        while not client.part.exists() or client.part.stat().st_size < 100_000:
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

        def kill() -> None:
            process.kill()
            process.wait()

        yield kill
        kill()


def test_a_killed_download_is_gone_on_from(client: Client, server: Server, child: Callable[[], None]) -> None:
    """A process that dies in the middle leaves a part and no target, and the next process fetches only the rest."""
    child()
    assert not client.target.exists()
    size = client.part.stat().st_size
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, f"bytes={size}-"]


@pytest.mark.usefixtures("child")
def test_two_at_once(client: Client, server: Server) -> None:
    """While a process downloads, another one to the same target is refused and touches nothing."""
    assert "another process is downloading" in client.fails(server.url)
    assert len(server.requests) == 1
    assert client.part.stat().st_size >= 100_000


def test_a_folder_that_cannot_be(client: Client, server: Server) -> None:
    """A place that cannot be written is an error with its path and its reason."""
    client.folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(
        DownloadFailed, match=r"cannot write .*store: File exists; free some space, fix the permissions"
    ):
        client.fetch(server.url)


def test_no_room(client: Client, server: Server) -> None:
    """A write that fails in the middle is an error with its reason, not a trace, and leaves no target."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n{CHILD}"
    command = [sys.executable, "-c", limited, server.url, str(client.target)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr.startswith(f"cannot write {client.target}: File too large; free some space")
    assert not client.target.exists()


ONE = "1" * 64
TWO = "2" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that does not exist yet, in a folder that does not exist yet."""
    return tmp_path / "store" / "hashes.json"


def test_a_hash_is_kept(path: Path) -> None:
    """What one process trusts, the next one knows, URL by URL; the last word counts."""
    TrustedHashes(path).record("https://a/x.pth", TWO)
    TrustedHashes(path).record("https://a/x.pth", ONE)
    TrustedHashes(path).record("https://b/x.pth", TWO)
    trusted = TrustedHashes(path)
    found = [trusted.get(url) for url in ("https://a/x.pth", "https://b/x.pth", "https://c/x.pth")]
    assert [one and one.sha256 for one in found] == [ONE, TWO, None]
    assert not path.with_name("hashes.json.new").exists()


def test_first_use_binds(path: Path, tmp_path: Path) -> None:
    """A file that changed since its first download is refused with both hashes and where the first was written down."""
    trusted = TrustedHashes(path)
    target = tmp_path / "weights.pth"

    def pull(url: str) -> str:
        return download(
            url, target, max_bytes=100, expected=trusted.get(url), progress=lambda *_: None, on_retry=lambda _: None
        )

    with serving(b"first") as server:
        first = pull(server.url)
        trusted.record(server.url, first)
        assert pull(server.url) == first
        server.then = Act(content=b"other")
        with pytest.raises(DownloadFailed, match=f"{first} was recorded in {path} at the first download"):
            pull(server.url)
    assert target.read_bytes() == b"first"


def test_secrets_are_not_written_down(path: Path) -> None:
    """A password is no part of what a file is called, neither in the trusted nor when it is looked up."""
    TrustedHashes(path).record("https://me:secret@a/x.pth#here", ONE)
    assert "secret" not in path.read_text()
    assert TrustedHashes(path).get("https://a/x.pth") is not None


def test_many_at_once(path: Path) -> None:
    """Processes that write at the same time lose none of each other's hashes."""
    code = (
        "import sys; from pathlib import Path; from model.zoo.download import TrustedHashes\n"
        "for k in range(20): TrustedHashes(Path(sys.argv[1])).record(f'https://{sys.argv[2]}/{k}', '0' * 64)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    trusted = TrustedHashes(path)
    assert all(trusted.get(f"https://{name}/{k}") is not None for name in "abc" for k in range(20))


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"https://a/x.pth": "short"}', '{"https://a/x.pth": 1}'])
def test_an_unreadable_book(path: Path, torn: str) -> None:
    """A trusted that cannot be read is an error, and never taken for an empty one that trusts everything."""
    path.parent.mkdir()
    path.write_text(torn)
    with pytest.raises(DownloadFailed, match="cannot be read"):
        TrustedHashes(path).get("https://a/x.pth")
    with pytest.raises(DownloadFailed, match="cannot be read"):
        TrustedHashes(path).record("https://a/x.pth", ONE)
    assert path.read_text() == torn


def test_a_book_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that cannot be written is an error with its path and its reason."""
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match=r"in .*hashes\.json: .*free some space, fix the permissions"):
        TrustedHashes(tmp_path / "file" / "hashes.json").record("https://a/x.pth", ONE)
