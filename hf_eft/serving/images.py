"""Pictures in requests, in OpenAI's form: opened within limits, and fetched from no place that the operator does not name."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener

from ..files.json_lines import shown, without_nulls

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # OpenAI's; every other decoder is one more that strangers' bytes could reach
_KINDS = ("image_url", "input_image")  # of chat completions; of responses
FORM = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
_SECONDS = 10.0  # for which another host may be silent


@dataclass(frozen=True)
class Limits:
    r"""
    What pictures of a request may be, all of them together.

    Args:
        bytes (`int`, *optional*, defaults to 20 MiB): As they are sent or fetched, before they are decoded.
        pixels (`int`, *optional*, defaults to 2^25, two pictures of 16 megapixels): When they are decoded, at 4 bytes each.
        hosts (`Sequence[str]`, *optional*):
            From where they may be fetched: names as URLs have them, with the port if it is not the usual one.

    Raises:
        `ValueError`: If a limit is below 1, or a host is a URL.
    """

    bytes: int = 20 * 2**20
    pixels: int = 2**25
    hosts: Sequence[str] = ()

    @classmethod
    def of(cls, bytes: int | None, pixels: int | None, hosts: Sequence[str]) -> Limits:
        """Of what an operator says."""
        said = {"bytes": bytes, "pixels": pixels}
        return cls(hosts=tuple(hosts), **{name: value for name, value in said.items() if value is not None})

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"`max_image_{name}` must be 1 or more, got {value}.")
        if wrong := [host for host in self.hosts if not host or urlsplit(f"//{host}").netloc != host or "@" in host]:
            raise ValueError(
                f"`image_hosts` are names of hosts, as in 'pictures.example.com' or 'localhost:8001', got {wrong[0]!r}."
            )


def first_image(items: Any, name: str) -> str | None:
    """Where the first picture is in messages, or in the items of a response's `input`; `None` if there is none."""
    for i, item in enumerate(_listed(items)):
        if _is_image(item):
            return f"{name}[{i}]"
        for j, part in enumerate(_parts(item)):
            if _is_image(part):
                return f"{name}[{i}]: content[{j}]"
    return None


def with_images(items: Sequence[Any], name: str, limits: Limits) -> list[Any]:
    r"""
    Messages whose pictures are opened.

    Args:
        items (`Sequence`): Messages, or the items of a response's `input`, as the client sent them. They stay as they are.
        name (`str`): How errors call them.
        limits ([`Limits`]): What pictures may be.

    Returns:
        `list`: The same, with `{"type": "image", "image": PIL.Image.Image}` for each picture, upright and in RGB.

    Raises:
        `ValueError`: If a picture cannot be opened, or is over the limits; message and part are named.
        `NotImplementedError`: If Pillow is missing.
    """
    opener = _Opener(limits)
    opened: list[Any] = []
    for i, item in enumerate(items):
        if _is_image(item):
            opened.append(opener.open(item, f"{name}[{i}]"))
        elif parts := _parts(item):
            where = f"{name}[{i}]: content"
            changed = [opener.open(part, f"{where}[{j}]") if _is_image(part) else part for j, part in enumerate(parts)]
            opened.append({**item, "content": changed})
        else:
            opened.append(item)
    return opened


class _Straight(HTTPRedirectHandler):
    """Follows no redirect: it would lead to a host that nobody named."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _Opener:
    """Opens the pictures of one request, and counts what they take."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._bytes, self._pixels = limits, 0, 0

    def open(self, part: Mapping[str, Any], where: str) -> dict[str, Any]:
        data = self._data(_address(part, where), where)
        return {"type": "image", "image": self._decoded(data, where)}

    def _data(self, address: str, where: str) -> bytes:
        room = self._limits.bytes - self._bytes
        data = _inline(address, where, room) if address[:5].lower() == "data:" else self._fetched(address, where, room)
        if data is None:
            raise ValueError(
                f"{where}: the pictures of a request may have {self._limits.bytes} bytes together, and with this one they have more. Send "
                "smaller ones."
            )
        self._bytes += len(data)
        return data

    def _fetched(self, address: str, where: str, room: int) -> bytes | None:
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or url.netloc.lower() not in {host.lower() for host in self._limits.hosts}:
            place = f" {url.netloc!r}" if url.scheme in ("http", "https") else ""
            raise ValueError(
                f"{where}: pictures are not fetched from{place or ' there'}: send a `data:` URL of base64, as in {FORM}. (The operator of "
                "the server may name hosts that pictures are fetched from: `image_hosts`, `--image-host`.)"
            )
        try:
            with build_opener(_Straight).open(address, timeout=_SECONDS) as answer:
                data: bytes = answer.read(room + 1)
        except HTTPError as error:
            error.close()
            raise ValueError(f"{where}: {url.netloc} answered {error.code} in place of a picture.") from None
        except (OSError, HTTPException, ValueError) as error:
            raise ValueError(f"{where}: the picture could not be fetched from {url.netloc}: {error}") from None
        return data if len(data) <= room else None

    def _decoded(self, data: bytes, where: str) -> Any:
        try:
            from PIL import Image
        except ImportError as error:
            raise NotImplementedError("Pictures need Pillow on the server: pip install 'hf-eft[serve]'") from error
        from transformers.image_utils import load_image

        broken = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the head, which tells the size
                width, height = image.size
                frames = getattr(image, "n_frames", 1)
                if (more := self._pixels + width * height) <= self._limits.pixels and frames == 1:
                    self._pixels = more
                    return load_image(image)  # the way in which processors' own pictures are loaded
        except broken as error:
            raise ValueError(f"{where}: this is no picture in {', '.join(FORMATS)} that can be read: {error}") from None
        if frames != 1:
            raise ValueError(
                f"{where}: the picture moves, in {frames} frames. Send those that matter, each as a picture of its own."
            )
        raise ValueError(
            f"{where}: the pictures of a request may have {self._limits.pixels} pixels together, and with the {width} x {height} of this "
            "one they have more. Send smaller ones."
        )


def _address(part: Mapping[str, Any], where: str) -> str:
    """The URL of a part."""
    rest = without_nulls(part)
    kind = rest.pop("type")
    given = rest.pop("image_url", None)
    if isinstance(given, Mapping):
        rest |= without_nulls(given)
        given = rest.pop("url", None)
    if (detail := rest.pop("detail", "auto")) != "auto":
        raise ValueError(
            f"{where}: `detail` {shown(detail)} is not heeded: each member's processor chooses its sizes. Leave it out."
        )
    if "file_id" in rest:
        raise ValueError(f"{where}: `file_id` is not heeded, as no files are kept here: send a `data:` URL.")
    if rest:
        raise ValueError(f"{where}: `{next(iter(rest))}` is not read in a part of the type {kind!r}: {FORM}.")
    if not isinstance(given, str) or not given:
        raise ValueError(f"{where}: a picture is {FORM}, got {shown(given) if given is not None else 'no URL'}.")
    return given


def _inline(address: str, where: str, room: int) -> bytes | None:
    """What a `data:` URL holds; `None` if it is more than there is room for."""
    head, comma, body = address[5:].partition(",")
    kind, *options = head.lower().split(";")
    if not comma or not kind.startswith("image/") or options != ["base64"]:
        raise ValueError(f'{where}: a `data:` URL of a picture begins with "data:image/png;base64,", got {address[:40]!r}.')
    if len(body) * 3 // 4 - 2 > room:
        return None
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}: the picture is no base64: {error}") from None
    return data if len(data) <= room else None


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _KINDS


def _parts(item: Any) -> list[Any]:
    return _listed(item.get("content")) if isinstance(item, Mapping) else []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
