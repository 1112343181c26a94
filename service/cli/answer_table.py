"""An answer as a table."""

from __future__ import annotations

from convmlp_client.results import Classification, Detections, Result, Segmentation
from service.cli.table import left, print_rows, right


def print_answer(name: str, result: Result) -> None:
    """One picture's answer, under a line with its name, its size and the model."""
    width, height = result.image.width, result.image.height
    match result:
        case Classification(labels=labels):
            columns = [left("label"), right("score")]
            rows = [[one.label, f"{one.score:.4f}"] for one in labels]
        case Detections(detections=detections):
            columns = [left("label"), right("score"), right("xmin"), right("ymin"), right("xmax"), right("ymax")]
            rows = [
                [one.label, f"{one.score:.4f}", *(f"{side:.1f}" for side in (box.xmin, box.ymin, box.xmax, box.ymax))]
                for one in detections
                for box in (one.box,)
            ]
        case Segmentation(segments=segments):
            columns = [left("label"), right("area"), right("share")]
            rows = [[one.label, str(one.area), f"{one.area / (width * height):.1%}"] for one in segments]
    print_rows(columns, rows, title=f"{name}  {width} x {height}  {result.meta.model}")
