"""The folder of a running service: the workers' sockets, the shared metrics, the list of served models.

It lies where nothing tidies up, if there is such a place, and carries a lock for as long as any process of the service
lives. The lock keeps systemd's cleaning of temporary folders away, and shows which folders were left by services that
were killed. Something may still delete the folder: then it is made again, workers bind their sockets again, and
processes share their metrics again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import structlog

PREFIX = "convmlp-serve-"
MAX_LEFTOVERS = 100
"""Folders looked at during a start."""
MAX_PATH = 95
"""Bytes of the folder's path. The kernel allows 107 for the path of a socket in it."""
LINGERING_USERS = Path("/var/lib/systemd/linger")
ATTEMPTS = 3

log = structlog.get_logger(__name__)


class NoRuntimeFolder(Exception):
    """No folder can be made; the message has what was tried."""


def runtime_parents(environment: Mapping[str, str]) -> list[Path]:
    """Where the folder may lie, the best place first.

    The folder of a login session vanishes when its user logs out, while a service may run on: it is used only if the
    user's processes are meant to outlive the session.
    """
    session = Path(f"/run/user/{os.geteuid()}")
    given = environment.get("XDG_RUNTIME_DIR")
    parents = [Path(given)] if given and Path(given).is_absolute() else []
    parents += [session, Path("/run")]
    lasting = parents if _lingers() else [parent for parent in parents if parent != session]
    with contextlib.suppress(FileNotFoundError):  # each is full
        lasting.append(Path(tempfile.gettempdir()))
    return lasting


class RuntimeFolder:
    """A new folder in the first of `parents` that takes one: use as a context manager, which removes it at the end.

    Raises:
        NoRuntimeFolder: none takes one.
    """

    path: Path
    lock: int
    """A descriptor that holds the lock. A child process that inherits it holds the lock as well."""

    def __init__(self, parents: Sequence[Path]) -> None:
        tried = []
        for parent in parents:
            try:
                self.path, self.lock = _make_in(parent)
            except OSError as error:
                tried.append(f"{parent}: {error.strerror or error}")
            else:
                self._lost = False
                return
        raise NoRuntimeFolder("; ".join(tried))

    def __enter__(self) -> RuntimeFolder:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)

    def restore(self) -> None:
        """Make the folder again if it was deleted. Call it regularly."""
        try:
            if _is_same(self.path, self.lock):
                return
            self.path.mkdir(mode=0o700, exist_ok=True)
            lock = _locked(self.path)
            os.fchmod(lock, 0o700)
            os.close(self.lock)
            self.lock = lock
        except OSError as error:
            if not self._lost:
                log.error(
                    "the runtime folder was deleted and cannot be made again", folder=str(self.path), error=str(error)
                )
            self._lost = True
        else:
            self._lost = False
            log.warning("the runtime folder was deleted; made it again", folder=str(self.path))


def _make_in(parent: Path) -> tuple[Path, int]:
    """A new folder and its lock. Raises OSError."""
    _remove_leftovers(parent)
    for attempt in range(ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            if len(os.fsencode(path)) > MAX_PATH:
                raise OSError("its path is too long for sockets")
            return path, _locked(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.rmdir()
            # Another service that starts at this moment took it for a leftover.
            if not isinstance(error, (BlockingIOError, FileNotFoundError)) or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _remove_leftovers(parent: Path) -> None:
    """Remove folders of services that no longer live. Raises OSError if `parent` cannot be listed."""
    with os.scandir(parent) as entries:
        found = (entry for entry in entries if entry.name.startswith(PREFIX))
        for entry in islice(found, MAX_LEFTOVERS):
            with contextlib.suppress(OSError):
                lock = _locked(Path(entry.path))
                try:
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(lock)
                log.info("removed the folder of a service that was killed", folder=entry.path)


def _locked(path: Path) -> int:
    """A descriptor of the folder that holds its lock.

    Raises:
        BlockingIOError: another process holds it.
        PermissionError: it is another user's.
        OSError: there is no such folder, or it cannot be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same(path, descriptor):
            raise FileNotFoundError(f"{path} was removed")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_same(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the open folder."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lingers() -> bool:
    """Whether systemd keeps this user's processes and their runtime folder without a session."""
    try:
        return (LINGERING_USERS / pwd.getpwuid(os.geteuid()).pw_name).exists()
    except (KeyError, OSError):
        return False
