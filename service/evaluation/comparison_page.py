"""The HTML page of a comparison: one file, with its pictures inside and without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

import PIL.Image

from convmlp_client.drawing import Palette
from convmlp_client.results import Classification, Embedding, Result
from model.errors import ConvMLPError
from service.evaluation.comparison import FIRST, LISTED_LABELS, SECOND, ComparedPicture
from service.evaluation.predictions import read_picture

LONGEST_SIDE = 480
"""Of a drawing on the page, in pixels."""
QUALITY = 85

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; font-weight: normal; vertical-align: top; }
td:last-child { font-variant-numeric: tabular-nums; }
section { border-top: 1px solid #8886; margin-top: 2rem; padding-top: .5rem; }
h2 { font-size: 1.1rem; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { overflow-wrap: anywhere; }
.missing { padding: 2rem 1rem; border: 1px dashed #888a; }
"""


@dataclass(frozen=True, slots=True)
class PageHead:
    """What the page begins with: the models by name, the data, and the summary's rows. `palettes`: of both models."""

    first: str
    second: str
    data: str
    rows: Sequence[tuple[str, str]]
    palettes: tuple[Palette | None, Palette | None] = (None, None)


def comparison_page(
    head: PageHead, pictures: Sequence[ComparedPicture], advance: Callable[[], None] = lambda: None
) -> str:
    """The page: the summary, then each picture with both drawings, in the given order. All names are escaped.

    Args:
        head: its beginning.
        pictures: whose files are read again; one that cannot be drawn has its results in words.
        advance: called for each picture.
    """
    return "".join(_parts(head, pictures, advance))


def _parts(head: PageHead, pictures: Sequence[ComparedPicture], advance: Callable[[], None]) -> Iterator[str]:
    title = escape(f"{head.first} and {head.second}")
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<table>\n"
    )
    for name, value in ((FIRST, head.first), (SECOND, head.second), ("data", head.data), *head.rows):
        yield f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>\n'
    yield "</table>\n"
    yield (
        f"<p>{len(pictures)} pictures, those that differ most first.</p>\n"
        if pictures
        else "<p>No picture differs.</p>\n"
    )
    for picture in pictures:
        yield _section(picture, head)
        advance()
    yield "</body>\n</html>\n"


def _section(picture: ComparedPicture, head: PageHead) -> str:
    truth = f"the truth is {picture.truth}" if picture.truth else ""
    facts = "; ".join(filter(None, (*picture.difference.facts, truth, picture.nearer)))
    figures = "".join(
        _figure(picture, result, f"{side}: {model}", palette)
        for side, model, result, palette in (
            (FIRST, head.first, picture.first, head.palettes[0]),
            (SECOND, head.second, picture.second, head.palettes[1]),
        )
    )
    return (
        f"<section>\n<h2>{escape(picture.sample.name)}</h2>\n<p>{escape(facts)}</p>\n"
        f'<div class="pair">\n{figures}</div>\n</section>\n'
    )


def _figure(picture: ComparedPicture, result: Result, caption: str, palette: Palette | None) -> str:
    words = _words(result)
    try:
        drawing = _data_url(_drawn(picture, result, palette))
        alternative = escape(f"{picture.sample.name} with the result of {caption}", quote=True)
        shown = f'<img src="{drawing}" alt="{alternative}">'
    except (ConvMLPError, OSError, ValueError) as error:
        shown = f'<p class="missing">{escape(f"cannot be drawn: {error}")}</p>'
    text = "<br>".join(escape(line) for line in (caption, words) if line)
    return f"<figure>\n{shown}\n<figcaption>{text}</figcaption>\n</figure>\n"


def _words(result: Result) -> str:
    """A classifier's labels; other results are in the drawing."""
    if isinstance(result, Classification):
        return ", ".join(f"{one.label} {one.score:.3f}" for one in result.labels[:LISTED_LABELS]) or "no label"
    return ""


def _drawn(picture: ComparedPicture, result: Result, palette: Palette | None) -> PIL.Image.Image:
    assert not isinstance(result, Embedding)
    if isinstance(result, Classification):
        result = Classification(result.image, result.labels[:LISTED_LABELS], result.meta)
    drawing = result.draw(read_picture(picture.sample.path), palette)
    drawing.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return drawing


def _data_url(drawing: PIL.Image.Image) -> str:
    content = io.BytesIO()
    drawing.save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
