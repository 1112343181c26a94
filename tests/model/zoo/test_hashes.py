from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model.zoo.download import DownloadFailed, download
from model.zoo.hashes import HashBook
from tests.model.zoo.server import Act, serving

ONE = "1" * 64
TWO = "2" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a book that is not there yet, in a folder that is not there yet."""
    return tmp_path / "store" / "hashes.json"


def test_a_hash_is_kept(path: Path) -> None:
    """What one process trusts, the next one knows, URL by URL; the last word counts."""
    HashBook(path).trust("https://a/x.pth", TWO)
    HashBook(path).trust("https://a/x.pth", ONE)
    HashBook(path).trust("https://b/x.pth", TWO)
    book = HashBook(path)
    known = [book.known(url) for url in ("https://a/x.pth", "https://b/x.pth", "https://c/x.pth")]
    assert [one and one.sha256 for one in known] == [ONE, TWO, None]
    assert not path.with_name("hashes.json.new").exists()


def test_first_use_binds(path: Path, tmp_path: Path) -> None:
    """A file that changed since its first download is refused with both hashes and where the first was written down."""
    book = HashBook(path)
    target = tmp_path / "weights.pth"

    def pull(url: str) -> str:
        return download(
            url, target, max_bytes=100, expected=book.known(url), progress=lambda *_: None, notice=lambda _: None
        )

    with serving(b"first") as server:
        first = pull(server.url)
        book.trust(server.url, first)
        assert pull(server.url) == first
        server.then = Act(content=b"other")
        with pytest.raises(DownloadFailed, match=f"{first} was recorded in {path} at the first download"):
            pull(server.url)
    assert target.read_bytes() == b"first"


def test_secrets_are_not_written_down(path: Path) -> None:
    """A password is no part of what a file is called, neither in the book nor when it is looked up."""
    HashBook(path).trust("https://me:secret@a/x.pth#here", ONE)
    assert "secret" not in path.read_text()
    assert HashBook(path).known("https://a/x.pth") is not None


def test_many_at_once(path: Path) -> None:
    """Processes that write at the same time lose none of each other's hashes."""
    code = (
        "import sys; from pathlib import Path; from model.zoo.hashes import HashBook\n"
        "for k in range(20): HashBook(Path(sys.argv[1])).trust(f'https://{sys.argv[2]}/{k}', '0' * 64)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    book = HashBook(path)
    assert all(book.known(f"https://{name}/{k}") is not None for name in "abc" for k in range(20))


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"https://a/x.pth": "short"}', '{"https://a/x.pth": 1}'])
def test_an_unreadable_book(path: Path, torn: str) -> None:
    """A book that cannot be read is an error, and never taken for an empty one that trusts everything."""
    path.parent.mkdir()
    path.write_text(torn)
    with pytest.raises(DownloadFailed, match="cannot be read"):
        HashBook(path).known("https://a/x.pth")
    with pytest.raises(DownloadFailed, match="cannot be read"):
        HashBook(path).trust("https://a/x.pth", ONE)
    assert path.read_text() == torn


def test_a_book_that_cannot_be_written(tmp_path: Path) -> None:
    """A place that cannot be written is an error with its path and its reason."""
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match=r"in .*hashes\.json: .*make room or mend the permissions"):
        HashBook(tmp_path / "file" / "hashes.json").trust("https://a/x.pth", ONE)
