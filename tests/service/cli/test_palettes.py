"""Models with colours of their own: what the service, its lists and the commands make of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from convmlp_client import AsyncClient
from convmlp_client.drawing import label_colour
from model.types import Task, UInt8Array
from tests.fakes import coloured, fake_bundle
from tests.service.cli.convmlp_command import convmlp, url
from tests.service.frontend.grpc_server import open_rpc_at
from tests.service.frontend.rest_server import Rest, open_rest, picture

TASKS = (Task.DETECT, Task.SEGMENT)
LABELS = {task: fake_bundle(task).config.labels for task in TASKS}
PALETTES = {
    task: tuple((17 * (index + 1), 1, 255 - index) for index in range(len(labels))) for task, labels in LABELS.items()
}
CAT = {task: labels.index("cat") for task, labels in LABELS.items()}
IMAGE = picture(100, width=300, height=200)
"""Of which both fake models find a cat."""


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    """A front-end whose models have no palette, and one with a palette for each of two tasks."""
    async with open_rest(more=[coloured(task, PALETTES[task]) for task in TASKS]) as running:
        yield running


async def pixels(rest: Rest, path: str, image: bytes) -> UInt8Array:
    response = await rest.http.post(path, content=image, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    with PIL.Image.open(BytesIO(response.content)) as opened:
        return np.asarray(opened.convert("RGB"))


def has(drawing: UInt8Array, colour: tuple[int, int, int]) -> bool:
    return bool((drawing == colour).all(axis=2).any())


async def test_both_transports_list_the_palette(rest: Rest) -> None:
    """By class index, red, green, blue; a model without one has none."""
    async with open_rpc_at(rest.worker.address, rest.settings) as rpc:
        for address in (url(rest), f"grpc://127.0.0.1:{rpc.port}"):
            async with AsyncClient(address) as client:
                found = {model.name: model.palette for model in await client.models()}
            assert {task: found[f"coloured_{task}"] for task in TASKS} == PALETTES
            assert found["fake_segment"] is None
    card = (await rest.http.get("/models/coloured_segment")).json()
    assert card["palette"] == [list(colour) for colour in PALETTES[Task.SEGMENT]]


@pytest.mark.parametrize("task", TASKS)
async def test_drawings_have_the_models_colours(rest: Rest, tmp_path: Path, task: Task) -> None:
    """Boxes, legends and tags of the service's drawing, and of the command's, which is the same to the bit; a model
    without a palette keeps the colours of its labels."""
    file, target = tmp_path / "a.png", tmp_path / "drawn.png"
    file.write_bytes(IMAGE)
    drawn = await pixels(rest, f"/{task}?model=coloured_{task}", IMAGE)
    plain = await pixels(rest, f"/{task}", IMAGE)
    assert has(drawn, PALETTES[task][CAT[task]])
    assert not has(drawn, label_colour("cat"))
    assert has(plain, label_colour("cat"))
    options = ["--model", f"coloured_{task}", "--save", str(target), "--url", url(rest)]
    ran = await convmlp(task, str(file), *options)
    assert (ran.status, ran.err) == (0, "")
    with PIL.Image.open(target) as saved:
        assert np.array_equal(np.asarray(saved), drawn)


async def test_an_analysis_is_drawn_in_the_colours_of_each_model(rest: Rest, tmp_path: Path) -> None:
    """Several models in one drawing keep their own colours, in the service's and in the command's."""
    (tmp_path / "a.png").write_bytes(IMAGE)
    names = "fake_detect,coloured_segment"
    drawn = await pixels(rest, f"/analyze?models={names}", IMAGE)
    assert has(drawn, label_colour("cat"))
    assert not np.array_equal(drawn, await pixels(rest, "/analyze?models=fake_detect,fake_segment", IMAGE))
    options = ["--models", names, "--save", str(tmp_path / "drawn.png"), "--url", url(rest)]
    assert (await convmlp("analyze", str(tmp_path / "a.png"), *options)).status == 0
    with PIL.Image.open(tmp_path / "drawn.png") as saved:
        assert np.array_equal(np.asarray(saved), drawn)


async def test_a_label_map_in_colours_keeps_its_indices(rest: Rest) -> None:
    """`view=colors` is a palette PNG: its values are those of `view=labelmap`, its colours the model's, or those of the
    labels."""
    colours = {
        "coloured_segment": PALETTES[Task.SEGMENT],
        "fake_segment": [label_colour(label) for label in LABELS[Task.SEGMENT]],
    }
    for name, expected in colours.items():
        views = [
            await rest.http.post(f"/segment?model={name}&view={view}", content=IMAGE) for view in ("labelmap", "colors")
        ]
        grey, shown = [await asyncio.to_thread(PIL.Image.open, BytesIO(view.content)) for view in views]
        assert (grey.mode, shown.mode) == ("L", "P")
        indices = np.asarray(grey)
        assert np.array_equal(np.asarray(shown), indices)
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.array(expected, np.uint8)[indices])
