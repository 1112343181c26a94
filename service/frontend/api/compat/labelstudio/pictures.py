"""Where the pictures of tasks are: in the task itself, at a URL, or in Label Studio, which needs its address and token.

Label Studio gives both to /setup before it asks for predictions. They are kept for the projects of each caller, so that
no caller gets a picture by another one's token; the token goes to no other address.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from service.errors import BadRequest, UrlRefused
from service.frontend.core.image_fetcher import ImageFetcher, ImageUrl, image_bytes
from service.frontend.core.parameters import shown
from service.frontend.core.request_log import RequestRecord
from service.frontend.http.body import SHORT_BYTES, image_of, off_loop

MAX_HOSTS = 1024
"""Projects whose Label Studio is kept."""
MAX_URL = 2048
"""Characters of its address."""
OWN_PATHS = ("/data/", "/storage-data/", "/upload/", "/tasks/", "/projects/", "upload/", "data/")
"""How Label Studio's own paths begin, in a task's data. Base64 of a picture begins with none."""
CLOUD_SCHEMES = ("s3://", "gs://", "azure-blob://")
"""Of storages that Label Studio reads: it gives a signed URL for them."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class LabelStudioHost:
    """A Label Studio: its URL, without a slash at its end, and the token for its files; empty if it has none."""

    url: str
    token: str = ""

    @property
    def authorization(self) -> str | None:
        """The value of the header. A JSON web token is a bearer's; the others are Django's."""
        if not self.token:
            return None
        return f"Bearer {self.token}" if self.token.count(".") == 2 else f"Token {self.token}"

    def file_url(self, text: str, task_id: int) -> str | None:
        """The URL of what a task's data names, if that is in this Label Studio; else None."""
        if text.startswith(CLOUD_SCHEMES):
            encoded = base64.urlsafe_b64encode(text.encode()).decode("ascii")
            return f"{self.url}/tasks/{task_id}/presign/?fileuri={encoded}"
        if text.startswith(f"{self.url}/"):
            return text
        base = urlsplit(self.url).path
        path = text.removeprefix(base)
        if not path.startswith(OWN_PATHS):
            return None
        path = path if path.startswith("/") else f"/{path}"
        return self.url + (f"/data{path}" if path.startswith("/upload/") else path)


def host_of(url: str, token: str) -> LabelStudioHost:
    """Raises BadRequest: the URL or the token cannot be used."""
    if len(url) > MAX_URL or not url.startswith(("http://", "https://")) or not urlsplit(url).netloc:
        raise BadRequest(f"`hostname` is {shown(url)}; expected Label Studio's URL, http://… or https://…")
    if token and not _TOKEN.fullmatch(token):
        raise BadRequest("`access_token` has other characters than ASCII ones without spaces, or more than 4,096")
    return LabelStudioHost(url.rstrip("/"), token)


class LabelStudioHosts:
    """The latest `MAX_HOSTS` that callers gave to /setup, by caller and project."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[tuple[str, str], LabelStudioHost] = OrderedDict()

    def put(self, caller: str, project: str, host: LabelStudioHost) -> None:
        self._hosts[caller, project] = host
        self._hosts.move_to_end((caller, project))
        if len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)

    def get(self, caller: str, project: str, url: str = "") -> LabelStudioHost | None:
        """The Label Studio of a caller's project. One with another `url` than /setup had gets no token."""
        known = self._hosts.get((caller, project))
        if url and (known is None or known.url != url.rstrip("/")):
            return host_of(url, "")
        return known


async def read_picture(
    value: msgspec.Raw,
    name: str,
    task_id: int,
    host: LabelStudioHost | None,
    fetcher: ImageFetcher,
    record: RequestRecord,
    deadline_s: float,
) -> bytes:
    """The bytes of a task's picture. `value` is the JSON of its place in the task's data, and `name` names that.

    Raises:
        BadRequest: it is neither base64, nor a `data:` URL, nor another URL.
        UrlRefused, FetchFailed, ImageTooLarge, DeadlineExceeded, Overloaded: as `ImageFetcher.fetch`.
    """
    nbytes = len(memoryview(value))
    if nbytes <= SHORT_BYTES:
        text = _text(value, name)
        if text.startswith((*OWN_PATHS, *CLOUD_SCHEMES)) and host is None:
            raise UrlRefused(
                f"{name} is a file of Label Studio, whose address is not known here; Label Studio sends it to /setup "
                "when it connects to the model, and before it retrieves predictions"
            )
        url = None if host is None else host.file_url(text, task_id)
        if host is not None and url is not None:
            return await fetcher.fetch(url, record, deadline_s, authorization=host.authorization)
    upload = await off_loop(lambda: _upload(value, name), nbytes)
    return await image_bytes(upload, fetcher, record, deadline_s)


def _text(value: msgspec.Raw, name: str) -> str:
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.ValidationError:
        raise BadRequest(f"{name} is no string; expected a URL, base64 or a data: URL") from None


def _upload(value: msgspec.Raw, name: str) -> bytes | ImageUrl | BadRequest:
    try:
        return image_of(value, name)
    except msgspec.ValidationError as error:
        return BadRequest(str(error))
