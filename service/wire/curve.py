"""How the wire between front-ends and workers is protected: by files on one host, by CURVE keys between hosts.

An ipc:// address is a socket that only processes with access to its file reach. A tcp:// address off loopback is
open to a network: there the wire is encrypted and both ends prove that they have the same key pair (CurveZMQ), unless
the setting insecure_wire declares the network private to the service.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from service.settings import Settings
from service.wire.transport import HANDSHAKE_S, HEADER_BYTES

if TYPE_CHECKING:
    import zmq
    from zmq.auth.thread import ThreadAuthenticator

BYTES_PER_ANSWERED_PIXEL = 4
"""More than any output has for each pixel of its picture: a label map has two bytes."""
INPUT_BYTES_PER_PIXEL = 3
"""Network inputs are uint8 RGB."""
KEY_FILE = """# The CURVE key pair of the wire between front-ends and workers of one service (setting wire_key_file).
# All of them need this file. Keep it secret: who has it can send jobs and read pictures.

curve
    public-key = "{public}"
    secret-key = "{secret}"
"""


class InsecureWire(Exception):
    """The wire's key file cannot be used, or a network address needs one. The message quotes no key."""


class CurveKeys(NamedTuple):
    """A key pair, in Z85."""

    public: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class WireOptions:
    """`max_frame_bytes`: the largest frame of a legal message; a peer that sends a larger one is disconnected.

    `keys`: for tcp:// addresses; None leaves them unprotected.
    """

    max_frame_bytes: int = -1
    keys: CurveKeys | None = None

    def apply(self, socket: zmq.Socket[bytes], address: str, *, server: bool) -> None:
        """Set a socket's options, before it binds or connects."""
        import zmq

        socket.setsockopt(zmq.MAXMSGSIZE, self.max_frame_bytes)
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE_S * 1000))
        if self.keys is None or not address.startswith("tcp://"):
            return
        socket.curve_publickey, socket.curve_secretkey = self.keys
        if server:
            socket.curve_server = True
        else:
            socket.curve_serverkey = self.keys.public

    def authenticator(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> ThreadAuthenticator | None:
        """What admits front-ends to a worker that listens at `address`; None where everyone is admitted.

        Call `start` before the worker's socket binds, and `stop` at the end.
        """
        if self.keys is None or not address.startswith("tcp://"):
            return None
        from zmq.auth.thread import ThreadAuthenticator  # only a worker needs it, and it imports an event loop

        authenticator = ThreadAuthenticator(context)
        authenticator.configure_curve_callback(credentials_provider=_SameKey(self.keys.public))
        return authenticator


PLAIN = WireOptions()
"""No bound and no keys."""


class _SameKey:
    """Admits the callers that have the worker's own key pair."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, _domain: str, key: bytes) -> bool:
        """`key` in Z85. The caller has proved that it has the secret key as well."""
        return hmac.compare_digest(key, self._public)


def front_end_wire(settings: Settings, keys: CurveKeys | None = None) -> WireOptions:
    """The options of a front-end's connections to its workers; `keys` in the place of those of the settings' file.

    Raises:
        InsecureWire: an address is on a network, and there is no usable key file.
    """
    max_bytes = settings.max_image_mpx * 10**6 * BYTES_PER_ANSWERED_PIXEL + HEADER_BYTES
    return WireOptions(max_bytes, keys or _keys_for_addresses(settings))


def worker_wire(settings: Settings, keys: CurveKeys | None = None) -> WireOptions:
    """The options of a worker's socket: no input is larger than all that may wait. As `front_end_wire`."""
    max_bytes = settings.max_queue_mpx * 10**6 * INPUT_BYTES_PER_PIXEL + HEADER_BYTES
    return WireOptions(max_bytes, keys or _keys_for_addresses(settings))


def make_keys() -> CurveKeys:
    """A new key pair."""
    import zmq

    return CurveKeys(*zmq.curve_keypair())


def make_key_file(path: Path) -> None:
    """Write a new key pair to a file that only its owner can read.

    Raises:
        OSError: it cannot be written; FileExistsError: it exists.
    """
    public, secret = make_keys()
    text = KEY_FILE.format(public=public.decode("ascii"), secret=secret.decode("ascii"))
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def _keys_for_addresses(settings: Settings) -> CurveKeys | None:
    if settings.wire_key_file is not None:
        return _read_keys(settings.wire_key_file)
    if settings.insecure_wire:
        return None
    for address in settings.worker_address:
        if not _stays_on_this_host(address):
            raise InsecureWire(
                f"the worker address {address} is on a network, and the wire has no keys: any process that reaches it "
                "could send jobs and read pictures. Set wire_key_file on all front-ends and workers (`convmlp wire-key "
                "FILE` makes one), or insecure_wire if the network is private to the service"
            )
    return None


def _read_keys(path: Path) -> CurveKeys:
    import zmq.auth

    expected = "expected a file of `convmlp wire-key`"
    try:
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise InsecureWire(f"{path}: {error.strerror or error}; {expected}") from None
    except ValueError:
        raise InsecureWire(f"{path}: has no public key; {expected}") from None
    if secret is None:
        raise InsecureWire(f"{path}: has no secret key; {expected}")
    try:
        matches = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        raise InsecureWire(f"{path}: the secret key is malformed; {expected}") from None
    if not matches:
        raise InsecureWire(f"{path}: the two keys are no pair; {expected}")
    return CurveKeys(public, secret)


def _stays_on_this_host(address: str) -> bool:
    kind, _, rest = address.partition("://")
    if kind == "ipc":
        return True
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or * for all interfaces
        return False
