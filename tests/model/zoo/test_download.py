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
from tests.model.zoo.download_client import (
    CONTENT,
    DOWNLOAD_SCRIPT,
    OTHER,
    DownloadClient,
    assert_whole,
    expected_hash,
    sha256,
)
from tests.model.zoo.scripted_server import LATER_DATE, OLD_DATE, ScriptedReply, Server, scripted_server


def test_a_file_is_downloaded(client: DownloadClient, server: Server) -> None:
    """The target is the server's file, the hash is returned, and the progress ends at its size."""
    assert client.fetch(server.url) == sha256(CONTENT)
    assert_whole(client)
    assert client.seen[-1] == (len(CONTENT), len(CONTENT))
    assert client.waits_s == []


def test_interruptions_with_progress_are_retried(client: DownloadClient, server: Server) -> None:
    """A connection that breaks often, but makes progress each time, is not given up."""
    server.default = ScriptedReply(cut_after=20_000)
    client.fetch(server.url)
    assert_whole(client)
    assert len(server.requests) == 15


def test_no_network_is_an_error_at_once(client: DownloadClient) -> None:
    """A host's name without an address is no reason to wait, unless bytes came before: then the network was lost."""
    with pytest.raises(DownloadFailed, match=r"no network to nowhere\.invalid .*connect this machine"):
        client.fetch("http://nowhere.invalid/file")
    assert client.waits_s == []


def test_attempts_are_bounded_in_all(client: DownloadClient, server: Server) -> None:
    """The total number of attempts is limited; the bytes so far are kept."""
    server.default = ScriptedReply(cut_after=10)
    with pytest.raises(DownloadFailed, match="40 bytes are kept"):
        client.fetch(server.url, max_attempts=4)
    assert client.part.read_bytes() == CONTENT[:40]


def test_a_stalled_server_times_out(client: DownloadClient, server: Server) -> None:
    """A timeout before or in the middle of the response ends the attempt; the next one gets the rest."""
    client.read_timeout_s = 0.5
    server.replies = [ScriptedReply(stall_after=0), ScriptedReply(stall_after=120_000)]
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, None, "bytes=120000-"]
    assert all("127.0.0.1 timed out; retrying in " in notice for notice in client.notices)


def test_a_server_that_never_answers(client: DownloadClient, server: Server) -> None:
    """Attempts without a byte are limited, the waits grow, and the error names the remedy."""
    client.read_timeout_s = 0.2
    server.default = ScriptedReply(stall_after=0)
    error = client.fails(server.url)
    assert len(server.requests) == 6
    assert all(0.5 * 2**k <= wait_s <= 2**k for k, wait_s in enumerate(client.waits_s))
    assert error == (
        f"cannot download {server.url}: 127.0.0.1 timed out (attempt 6, the last); try again later, "
        "or try another source with --mirror or --url"
    )


@pytest.mark.parametrize("cuts", [[100_000], [100_000, 50_000]])
def test_a_server_that_always_starts_over(client: DownloadClient, server: Server, cuts: list[int]) -> None:
    """Bytes that were received before are no progress."""
    server.replies = [ScriptedReply(ranges=False, cut_after=cut) for cut in cuts * 12]
    client.fails(server.url)
    assert len(server.requests) == 6


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_statuses_are_retried(client: DownloadClient, server: Server, status: int) -> None:
    """Transient error statuses are retried and reported."""
    server.replies = [ScriptedReply(status=status), ScriptedReply(status=status)]
    client.fetch(server.url)
    assert_whole(client)
    assert f"127.0.0.1 answered {status} " in client.notices[1]


def test_transient_statuses_are_bounded(client: DownloadClient, server: Server) -> None:
    """Retries are limited; the error has the last status."""
    server.default = ScriptedReply(status=500)
    assert "500 Internal Server Error (attempt 6, the last)" in client.fails(server.url)
    assert len(server.requests) == 6


def test_retry_after_is_honoured(client: DownloadClient, server: Server) -> None:
    """The wait is at least Retry-After, in seconds or as a date by the server's clock."""
    server.replies = [ScriptedReply(status=503, headers={"Retry-After": wait}) for wait in ("7", LATER_DATE, "soon")]
    server.replies[1] = replace(server.replies[1], date=OLD_DATE)
    client.fetch(server.url)
    assert_whole(client)
    assert client.waits_s[:2] == [7, 40]
    assert client.waits_s[2] <= 4


def test_retry_after_is_bounded(client: DownloadClient, server: Server) -> None:
    """A server with a long Retry-After is not retried."""
    server.default = ScriptedReply(status=503, headers={"Retry-After": "3600"})
    assert "asks to retry after 3600 s" in client.fails(server.url)
    assert client.waits_s == []


def test_nobody_listens(client: DownloadClient) -> None:
    """Refused connections fail after a limited number of attempts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        error = client.fails(f"http://127.0.0.1:{bound.getsockname()[1]}/weights.pth")
    assert "cannot connect to 127.0.0.1" in error
    assert len(client.waits_s) == 5


@pytest.mark.parametrize("url", ["weights.pth", "file:///etc/passwd", "http://", "http://[::1/x", "http://a b\n/x"])
def test_other_urls_are_refused(client: DownloadClient, url: str) -> None:
    """Anything but http(s)://HOST is refused before any request."""
    client.fails(url)
    assert not client.folder.exists()


def test_a_wrong_hash(client: DownloadClient, server: Server) -> None:
    """A damaged file is an error with both hashes and the expected one's origin, and leaves no file."""
    damaged = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    server.default = ScriptedReply(content=damaged)
    error = client.fails(server.url, expected_hash(CONTENT))
    assert f"has SHA-256 {sha256(damaged)}" in error
    assert f"{sha256(CONTENT)} was given with --sha256" in error
    assert not client.part.exists()


def test_a_failure_leaves_the_old_target(client: DownloadClient, server: Server) -> None:
    """An existing target is unchanged until the new file is complete and checked."""
    client.folder.mkdir()
    client.target.write_bytes(b"old")
    server.default = ScriptedReply(content=OTHER)
    with pytest.raises(DownloadFailed):
        client.fetch(server.url, expected_hash(CONTENT))
    assert client.target.read_bytes() == b"old"
    server.default = ScriptedReply()
    client.fetch(server.url, expected_hash(CONTENT))
    assert_whole(client)


@pytest.mark.parametrize("text", ["", "abc", "0x" + "0" * 62, "g" * 64, "0" * 65])
def test_an_invalid_hash_is_refused(text: str) -> None:
    """An invalid hash is refused before any request."""
    with pytest.raises(DownloadFailed, match="64 hexadecimal digits"):
        ExpectedHash.given(text)


def test_a_hash_in_capitals(client: DownloadClient, server: Server) -> None:
    """Hashes are compared case-insensitively."""
    client.fetch(server.url, ExpectedHash.given(f" {sha256(CONTENT).upper()}\n"))
    assert_whole(client)


@pytest.fixture
def child(client: DownloadClient, server: Server) -> Iterator[Callable[[], None]]:
    """A download in another process, stalled half way; calling it kills the process."""
    server.replies = [ScriptedReply(stall_after=200_000)]
    command = [sys.executable, "-c", DOWNLOAD_SCRIPT, server.url, str(client.target)]
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


def test_a_killed_download_is_resumed(client: DownloadClient, server: Server, child: Callable[[], None]) -> None:
    """A killed process leaves a partial file and no target; the next one downloads only the rest."""
    child()
    assert not client.target.exists()
    size = client.part.stat().st_size
    client.fetch(server.url)
    assert_whole(client)
    assert server.ranges == [None, f"bytes={size}-"]


@pytest.mark.usefixtures("child")
def test_two_at_once(client: DownloadClient, server: Server) -> None:
    """While a process downloads, another one to the same target is refused and changes nothing."""
    assert "another process is downloading" in client.fails(server.url)
    assert len(server.requests) == 1
    assert client.part.stat().st_size >= 100_000


def test_no_lock_file_is_left(client: DownloadClient, server: Server) -> None:
    """Neither behind a download nor behind one that failed; what a killed process left locks nobody out."""
    lock = client.target.with_name(f"{client.target.name}.lock")
    client.folder.mkdir(exist_ok=True)
    lock.touch()
    server.replies = [ScriptedReply(status=404)]
    assert "404" in client.fails(server.url)
    assert not lock.exists()
    client.fetch(server.url)
    assert client.target.exists()
    assert not lock.exists()


def test_a_folder_that_cannot_be_created(client: DownloadClient, server: Server) -> None:
    """The error has the path and the reason."""
    client.folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(
        DownloadFailed, match=r"cannot write .*store: File exists; free some space, fix the permissions"
    ):
        client.fetch(server.url)


def test_a_full_disk(client: DownloadClient, server: Server) -> None:
    """A write that fails half way is an error with its reason, and leaves no target."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n{DOWNLOAD_SCRIPT}"
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


def test_hashes_are_persistent(path: Path) -> None:
    """Recorded hashes are read back by URL; the last one recorded counts."""
    TrustedHashes(path).record("https://a/x.pth", TWO)
    TrustedHashes(path).record("https://a/x.pth", ONE)
    TrustedHashes(path).record("https://b/x.pth", TWO)
    trusted = TrustedHashes(path)
    found = [trusted.get(url) for url in ("https://a/x.pth", "https://b/x.pth", "https://c/x.pth")]
    assert [one and one.sha256 for one in found] == [ONE, TWO, None]
    assert not path.with_name("hashes.json.new").exists()


def test_first_use_binds(path: Path, tmp_path: Path) -> None:
    """A file that has changed since its first download is refused; the error has both hashes and where the first is
    recorded.
    """
    trusted = TrustedHashes(path)
    target = tmp_path / "weights.pth"

    def pull(url: str) -> str:
        return download(
            url, target, max_bytes=100, expected=trusted.get(url), progress=lambda *_: None, on_retry=lambda _: None
        )

    with scripted_server(b"first") as server:
        first = pull(server.url)
        trusted.record(server.url, first)
        assert pull(server.url) == first
        server.default = ScriptedReply(content=b"other")
        with pytest.raises(DownloadFailed, match=f"{first} was recorded in {path} at the first download"):
            pull(server.url)
    assert target.read_bytes() == b"first"


def test_secrets_are_not_recorded(path: Path) -> None:
    """User, password and fragment are not part of the recorded URL."""
    TrustedHashes(path).record("https://me:secret@a/x.pth#here", ONE)
    assert "secret" not in path.read_text()
    assert TrustedHashes(path).get("https://a/x.pth") is not None


def test_concurrent_records_are_kept(path: Path) -> None:
    """Processes that record at the same time lose none of each other's hashes."""
    code = (
        "import sys; from pathlib import Path; from model.zoo.download import TrustedHashes\n"
        "for k in range(20): TrustedHashes(Path(sys.argv[1])).record(f'https://{sys.argv[2]}/{k}', '0' * 64)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    trusted = TrustedHashes(path)
    assert all(trusted.get(f"https://{name}/{k}") is not None for name in "abc" for k in range(20))


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"https://a/x.pth": "short"}', '{"https://a/x.pth": 1}'])
def test_an_unreadable_file_of_hashes(path: Path, torn: str) -> None:
    """A file that cannot be read is an error, not an empty set of hashes."""
    path.parent.mkdir()
    path.write_text(torn)
    with pytest.raises(DownloadFailed, match="cannot be read"):
        TrustedHashes(path).get("https://a/x.pth")
    with pytest.raises(DownloadFailed, match="cannot be read"):
        TrustedHashes(path).record("https://a/x.pth", ONE)
    assert path.read_text() == torn


def test_a_file_of_hashes_that_cannot_be_written(tmp_path: Path) -> None:
    """The error has the path and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match=r"in .*hashes\.json: .*free some space, fix the permissions"):
        TrustedHashes(tmp_path / "file" / "hashes.json").record("https://a/x.pth", ONE)
