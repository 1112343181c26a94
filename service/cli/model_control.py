"""`convmlp models load|unload|reload|split`: change which models a running service serves, without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
import typer

from convmlp_client.transport import connection_reason, parse_url
from model.model_name import EXPECTED_NAME, SEPARATOR, base_name, canonical_name, is_name, version_of
from service.cli.console import number_column, print_error, print_output, print_table, printable, text_column, waiting
from service.traffic_split import parse_split

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_S = 10.0
MARGIN_S = 5.0
"""How long the command waits beyond the timeout that the service knows: its error is clearer."""

NOT_OURS = "that is not one of this service; check --url"
OF_SERVICE = ("default", "ready", "device", "precision", "form", "form_difference", "share")
"""The parts of a model's description that its files do not decide."""

T = TypeVar("T")

Name = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the model. Without a version: version 1.")]
Url = Annotated[
    str, typer.Option(envvar="CONVMLP_URL", help="REST address of the running service: http://HOST:PORT or https://…")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="CONVMLP_API_KEY",
        help="API key, if the service requires one. Other users of this machine can read flags; prefer the variable.",
    ),
]
TimeoutMs = Annotated[
    int,
    typer.Option(
        min=1, max=3_600_000, help="How long to wait, in milliseconds. The service may have a shorter limit of its own."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class _Problem(msgspec.Struct):
    """The part of an error that is printed (RFC 9457)."""

    detail: str


class _Card(msgspec.Struct):
    """The part of a model's description that is printed."""

    name: str
    version: str
    task: str
    ready: bool
    device: str
    precision: str
    share: float


class _Cards(msgspec.Struct):
    models: list[_Card]


def add_control_commands(models_app: typer.Typer) -> None:
    models_app.command("load")(load_model)
    models_app.command("unload")(unload_model)
    models_app.command("reload")(reload_model)
    models_app.command("split")(split_model)


def load_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, timeout_ms: TimeoutMs = 600_000) -> None:
    """Let a running service serve a model of its store. Needs --model-control there.

    It returns once the model is ready. `models split` gives a further version a share of the requests for the name.
    """
    with _open(url, api_key, timeout_ms) as service:
        service.change(name, "load", "loading")
        _print_ready(service, name)


def unload_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, timeout_ms: TimeoutMs = 600_000) -> None:
    """Let a running service stop serving a model, and free its memory. Needs --model-control there.

    Requests in progress are answered first. A share of the requests for the model's name goes to the other versions.
    """
    with _open(url, api_key, timeout_ms) as service:
        service.change(name, "unload", "unloading")
        print_output(printable(f"{canonical_name(name)} is unloaded"))


def reload_model(name: Name, url: Url = DEFAULT_URL, api_key: ApiKey = None, timeout_ms: TimeoutMs = 600_000) -> None:
    """Let a running service read a served model again, after its files in the store changed. Needs --model-control.

    The present one answers until the new one is ready, and stays if the new one cannot be served.
    """
    with _open(url, api_key, timeout_ms) as service:
        path = _model_path(name)
        before = service.request("GET", path)
        service.change(name, "load", "reloading")
        unchanged = _of_bundle(before) == _of_bundle(service.request("GET", path))
        _print_ready(service, name, ", unchanged in the store" if unchanged else ", loaded again")


def split_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model, without a version.")],
    split: Annotated[
        str | None,
        typer.Argument(
            metavar="VERSION:PERCENT,…",
            help="Shares of the requests for NAME, such as 1:90,2:10; they sum to 100. A single VERSION gets all. "
            "Without it the present shares are printed.",
            show_default=False,
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    timeout_ms: TimeoutMs = 30_000,
    as_json: AsJson = False,
) -> None:
    """Show how requests for a model's name are split among its versions, or change it. A change needs --model-control.

    A change holds at once for new requests, on all workers and front-ends.
    """
    if SEPARATOR in name:
        raise typer.BadParameter(
            f"{name} names a version; a split is of all versions of {base_name(name)}", param_hint="NAME"
        )
    try:
        shares = None if split is None else parse_split(split)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="VERSION:PERCENT,…") from None
    with _open(url, api_key, timeout_ms) as service:
        if shares is not None:
            service.request("PUT", f"/models/{quote(name, safe=SEPARATOR)}/split", msgspec.json.encode(shares))
        versions = service.versions(name)
    if as_json:
        print_output(msgspec.json.encode({"name": name, "versions": versions}).decode())
        return
    print_table(
        [text_column("version"), number_column("share"), text_column("name"), text_column("ready")],
        [[card.version, f"{100 * card.share:g} %", card.name, "yes" if card.ready else "no"] for card in versions],
    )


class _Failed(Exception):
    """The service refused, or gave no answer; the message is for the user."""


class _Service:
    """A running service. The methods raise `_Failed`."""

    def __init__(self, http: httpx2.Client, url: str) -> None:
        self._http = http
        self._url = url

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a successful answer."""
        try:
            response = self._http.request(method, path, content=body)
        except httpx2.ConnectError as error:
            reason = connection_reason(error)
            raise _Failed(f"cannot connect to {self._url}: {reason}; start `convmlp serve`, or set --url") from error
        except httpx2.TimeoutException as error:
            raise _Failed(f"no reply from {self._url} in time; a change may still take place") from error
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise _Failed(f"the connection to {self._url} broke before the reply: {reason}") from error
        if response.is_success:
            return response.content
        try:
            detail = msgspec.json.decode(response.content, type=_Problem).detail
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _Failed(f"{self._url} answered {response.status_code} {NOT_OURS}") from None
        raise _Failed(detail)

    def change(self, name: str, verb: str, doing: str) -> None:
        """Load or unload a model. Raises typer.BadParameter: no model can have the name."""
        name = canonical_name(name)
        if not is_name(name):
            raise typer.BadParameter(f"{name!r}: {EXPECTED_NAME}", param_hint="NAME")
        with waiting(f"{doing} {name}"):
            self.request("POST", f"/v2/repository/models/{quote(name, safe=SEPARATOR)}/{verb}")

    def versions(self, name: str) -> list[_Card]:
        """The served versions of a model; never none."""
        cards = self._decode(self.request("GET", "/models"), _Cards).models
        versions = [card for card in cards if base_name(card.name) == base_name(name)]
        if not versions:
            raise _Failed(
                f"there is no model {canonical_name(name)!r}; served: {', '.join(card.name for card in cards)}"
            )
        return versions

    def card(self, name: str) -> _Card:
        return self._decode(self.request("GET", _model_path(name)), _Card)

    def _decode(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _Failed(f"{self._url} gave an answer {NOT_OURS}") from None


@contextmanager
def _open(url: str, api_key: str | None, timeout_ms: int) -> Iterator[_Service]:
    """The service, until the context ends; what fails in the context is printed.

    Raises:
        typer.BadParameter: the URL or the key is malformed.
        typer.Exit: with status 1, after an error message.
    """
    try:
        parts = parse_url(url)
        if not parts.scheme.startswith("http"):
            raise ValueError(f"{url!r} is an address of gRPC; models are changed over REST: http://HOST:PORT")
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("the API key has characters that cannot be sent; expected printable ASCII")
    except ValueError as error:
        raise typer.BadParameter(f"--url or --api-key: {error}") from None
    headers = {"X-Request-Timeout-Ms": str(timeout_ms), "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    timeout = httpx2.Timeout(timeout_ms / 1000 + MARGIN_S, connect=CONNECT_TIMEOUT_S)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with httpx2.Client(base_url=url, headers=headers, timeout=timeout) as http:
            yield _Service(http, address)
    except _Failed as error:
        print_error(str(error))
        raise typer.Exit(1) from None


def _print_ready(service: _Service, name: str, change: str = "") -> None:
    card = service.card(name)
    state = "is ready" if card.ready else "is not ready"
    line = f"{card.name} {state}{change}: {card.task}, {card.precision}, {card.device}"
    if card.share < 1:
        line += f"; {100 * card.share:g} % of the requests for {base_name(name)}"
    print_output(printable(line))


def _model_path(name: str) -> str:
    """The path of a version's description. A name alone would mean the version that answers most requests."""
    return f"/models/{quote(f'{base_name(name)}{SEPARATOR}{version_of(name)}', safe=SEPARATOR)}"


def _of_bundle(body: bytes) -> dict[str, Any]:
    """What a model's description has from its files."""
    card: dict[str, Any] = msgspec.json.decode(body)
    return {key: value for key, value in card.items() if key not in OF_SERVICE}
