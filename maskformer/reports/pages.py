"""HTML pages: one file each, which opens from disk without a network, from the templates beside this module."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from maskformer.data.files.reading import read_picture
from maskformer.files import unfinished

JPEG_QUALITY = 85
_MISSING = "\N{EN DASH}"  # base.html sorts it last
_JPEG_URL = "data:image/jpeg;base64,"
_JPEG_START = b"\xff\xd8\xff"
_SIDES = (640, 480, 320, 200)  # pixels, of a picture that has to be smaller

_TEMPLATES = Environment(
    loader=PackageLoader("maskformer.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _format_score(score: float | None) -> str:
    return _MISSING if score is None else f"{score:.1f}"


def _format_change(change: float | None) -> str:
    return _MISSING if change is None else f"{change:+.1f}".replace("-", "\N{MINUS SIGN}")


_TEMPLATES.filters.update(score=_format_score, change=_format_change)


def write_page(path: str | Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all.

    Args:
        path: of the HTML file.
        template: a file in ``templates``, which extends ``base.html``.
        content: what its names stand for. Texts are escaped, whatever they hold.
    """
    page = _TEMPLATES.get_template(template).render(content)
    with unfinished(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # of a file's name that is no UTF-8


def picture_url(picture: np.ndarray, *, longest_side: int | None = None) -> str:
    """A picture as a ``data:`` address, so that a page holds it.

    Args:
        picture: (height,width,3) uint8 RGB.
        longest_side: a larger picture is made smaller, to this many pixels; None: never.
    """
    scale = 1.0 if longest_side is None else min(1.0, longest_side / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return _JPEG_URL + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_file_url(path: Path, *, most_bytes: int) -> str:
    """The picture in a file as a ``data:`` address; one of too many bytes is made smaller.

    Raises:
        BadImageError: it is no picture that can be read.
    """
    content = path.read_bytes() if path.stat().st_size <= most_bytes else b""
    if content.startswith(_JPEG_START):
        return _JPEG_URL + base64.b64encode(content).decode("ascii")
    picture = np.asarray(read_picture(str(path), "It is left out of the page."))
    for longest_side in _SIDES:
        url = picture_url(picture, longest_side=longest_side)
        if len(url) <= most_bytes * 4 / 3:
            break
    return url
