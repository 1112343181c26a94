"""The client and its process: imports, leaks, forks, signals, environment."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.client.local_service import LocalService, open_service
from tests.service.frontend.rest_server import picture
from tests.waiting import until


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(picture(42))
    return str(path)


async def start(
    script: str, *arguments: str, options: tuple[str, ...] = (), **environment: str
) -> asyncio.subprocess.Process:
    """Run a Python script with these arguments in `sys.argv`."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *options, "-c", f"import sys\n{script}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )


async def run(script: str, *arguments: str, options: tuple[str, ...] = (), **environment: str) -> Ran:
    process = await start(script, *arguments, options=options, **environment)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


async def test_rest_imports_little(service: LocalService, image: str) -> None:
    """A request over REST imports neither the service nor the packages of its extras."""
    ran = await run(
        """
from convmlp_client import Client
with Client(sys.argv[1]) as client:
    print(client.classify(sys.argv[2]).labels[0].index)
print({"service", "model", "torch", "grpc", "google.protobuf", "cv2", "pydantic"} & set(sys.modules))
""",
        *(service.url("rest"), image),
    )
    assert (ran.status, ran.out, ran.err) == (0, "42\nset()\n", "")


async def test_grpc_does_not_import_the_service(service: LocalService, image: str) -> None:
    """A request over gRPC imports gRPC, and nothing of the service."""
    ran = await run(
        """
from convmlp_client import Client
with Client(sys.argv[1]) as client:
    print(client.classify(sys.argv[2]).labels[0].index)
print({"service", "model", "torch", "cv2", "pydantic"} & set(sys.modules))
""",
        *(service.url("grpc"), image),
    )
    assert (ran.status, ran.out, ran.err) == (0, "42\nset()\n", "")


async def test_missing_extras_are_named() -> None:
    """If the packages of an extra are missing, the error shows the command that installs it."""
    ran = await run(
        """
sys.modules["grpc"] = sys.modules["rich.console"] = None  # as if they were not installed
from convmlp_client import AsyncClient, Client
for kind in (AsyncClient, Client):
    try:
        kind("grpc://127.0.0.1:1")
    except ImportError as error:
        print(error)
client = Client("http://127.0.0.1:1")
try:
    next(client.classify_many([], progress=True))
except ImportError as error:
    print(error)
client.close()
"""
    )
    assert ran.out.splitlines() == [
        *["grpc:// and grpcs:// need grpc, which is not installed: pip install 'convmlp-client[grpc]'"] * 2,
        "progress=True needs rich.console, which is not installed: pip install 'convmlp-client[progress]'",
    ]
    assert (ran.status, ran.err) == (0, "")


async def test_closing_leaks_nothing(service: LocalService, image: str, transport: str) -> None:
    """A closed client leaves no thread, no socket, and no warning."""
    ran = await run(
        """
import asyncio, gc, os, threading, time
from pathlib import Path
from convmlp_client import AsyncClient, Client

def sockets():
    return [name for name in map(os.readlink, Path("/proc/self/fd").glob("*")) if "socket" in name]

def sync(url, image):
    with Client(url) as client:
        client.classify(image)
        print(len(list(client.detect_many([image] * 20))))
        for outcome in client.classify_many([image] * 20):
            break
        outcomes = client.segment_many([image] * 20)
        next(outcomes)
    outcomes.close()  # after the client

async def asynchronous(url, image):
    async with AsyncClient(url) as client:
        await client.classify(image)
        print(len([one async for one in client.classify_many([image] * 20)]))
        async for outcome in client.classify_many([image] * 20):
            break
        outcomes = client.segment_many([image] * 20)
        await anext(outcomes)
    await outcomes.aclose()

os.readlink = lambda path, readlink=os.readlink: readlink(path) if os.path.lexists(path) else ""
sync(*sys.argv[1:])  # once before counting: gRPC keeps some sockets for the process
before = len(sockets())
for _ in range(3):
    sync(*sys.argv[1:])
    asyncio.run(asynchronous(*sys.argv[1:]))
gc.collect()
print([thread.name for thread in threading.enumerate() if thread is not threading.main_thread()])
for _ in range(100):  # gRPC closes connections in a thread of its own
    if len(sockets()) <= before:
        break
    time.sleep(0.05)
print(len(sockets()) <= before)
""",
        *(service.url(transport), image),
        options=("-W", "error"),
    )
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[-2:] == ["[]", "True"]


async def test_an_unclosed_client_warns(service: LocalService, image: str, transport: str) -> None:
    """An unclosed client gives a ResourceWarning, and the process still exits."""
    ran = await run(
        """
from convmlp_client import Client
client = Client(sys.argv[1])
print(client.classify(sys.argv[2]).labels[0].index)
del client
kept = Client(sys.argv[1])
kept.classify(sys.argv[2])
""",
        *(service.url(transport), image),
        options=("-W", "always::ResourceWarning"),
    )
    assert (ran.status, ran.out) == (0, "42\n")
    assert "ResourceWarning: a Client was not closed; use `with`, or call its close()" in ran.err
    assert "Traceback" not in ran.err


async def test_a_forked_process_needs_its_own_client(service: LocalService, image: str, transport: str) -> None:
    """A client that was in use before a fork raises RuntimeError in the child, and keeps working in the parent."""
    ran = await run(
        """
import os
from convmlp_client import Client
url, image = sys.argv[1:]
with Client(url) as client:
    client.classify(image)
    child = os.fork()
    if not child:
        for request in (lambda: client.classify(image), lambda: list(client.classify_many([image])), client.ready):
            try:
                request()
            except RuntimeError as error:
                print(error)
        client.close()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(client.classify(image).labels[0].index)
""",
        *(service.url(transport), image),
    )
    message = "the client was in use before this process was forked; make one in each process"
    assert ran.out.splitlines() == [message, message, message, "42"]
    assert ran.status == 0
    assert "Traceback" not in ran.err  # gRPC itself logs about forks


async def test_a_client_may_be_made_before_a_fork(service: LocalService, image: str) -> None:
    """A client that was not yet in use works in each forked process, as pre-fork servers need it."""
    ran = await run(
        """
import os
from convmlp_client import Client
url, image = sys.argv[1:]
client = Client(url)
for _ in range(2):
    if not os.fork():
        os.write(1, f"{client.classify(image).labels[0].index}\\n".encode())
        client.close()
        os._exit(0)
for _ in range(2):
    assert os.wait()[1] == 0
""",
        *(service.url("rest"), image),
    )
    assert (ran.status, ran.out, ran.err) == (0, "42\n42\n", "")


async def test_ctrl_c_cancels_the_request(fresh_service: LocalService, image: str, transport: str) -> None:
    """Ctrl-C raises KeyboardInterrupt at once, and cancels the request at the service."""
    with fresh_service.device_blocked():
        process = await start(
            """
import signal
from convmlp_client import Client
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
with Client(sys.argv[1]) as client:
    try:
        client.classify(sys.argv[2])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()
""",
            *(fresh_service.url(transport), image),
        )
        await until(lambda: fresh_service.in_flight == 1)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"interrupted\n"
        await until(lambda: fresh_service.in_flight == 0)
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (0, b"", b"")


async def test_the_api_key_may_come_from_the_environment(image: str, tmp_path: Path) -> None:
    """CONVMLP_API_KEY is the default of `api_key`."""
    key = "0123456789abcdef0123456789abcdef"
    (tmp_path / "keys").write_text(f"me {key}\n")
    script = """
from convmlp_client import Client
with Client(sys.argv[1]) as client:
    print(client.classify(sys.argv[2]).labels[0].index)
"""
    with open_service(api_keys_file=tmp_path / "keys") as service:
        ran = await run(script, service.url("rest"), image, CONVMLP_API_KEY=key)
        assert (ran.status, ran.out) == (0, "42\n")
        ran = await run(script, service.url("rest"), image)
        assert "convmlp_client.errors.Unauthenticated" in ran.err
