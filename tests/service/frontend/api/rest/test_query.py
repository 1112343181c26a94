from __future__ import annotations

import re

import pytest

from model.postprocess.masks import MaskFormat
from model.types import QueryParams, Task
from service.errors import BadParameter
from service.frontend.api.rest.query import Medium, Query, read_query
from service.frontend.core.endpoint_parameters import ANALYZE_PARAMETERS
from service.frontend.core.parameters import PARAMETERS, View
from service.frontend.http.middleware import read_timeout_ms


@pytest.mark.parametrize("task", Task)
def test_defaults(task: Task) -> None:
    """Without a query the contract's defaults hold: 5 labels, 100 detections, the model's threshold, RLE masks."""
    assert read_query(task, b"") == Query(None, QueryParams(5, None, 100, True), MaskFormat.RLE, None)


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        (Task.CLASSIFY, b"model=a&top_k=1", Query("a", QueryParams(top_k=1), MaskFormat.RLE, None)),
        (Task.CLASSIFY, b"top_k=1000", Query(None, QueryParams(top_k=1000), MaskFormat.RLE, None)),
        (Task.DETECT, b"score_threshold=0", Query(None, QueryParams(score_threshold=0.0), MaskFormat.RLE, None)),
        (Task.DETECT, b"score_threshold=1.0", Query(None, QueryParams(score_threshold=1.0), MaskFormat.RLE, None)),
        (Task.DETECT, b"score_threshold=5e-1", Query(None, QueryParams(score_threshold=0.5), MaskFormat.RLE, None)),
        (Task.DETECT, b"max_detections=1", Query(None, QueryParams(max_detections=1), MaskFormat.RLE, None)),
        (Task.DETECT, b"masks=False", Query(None, QueryParams(masks=False), MaskFormat.NONE, None)),
        (Task.DETECT, b"mask_format=none", Query(None, QueryParams(masks=False), MaskFormat.NONE, None)),
        (Task.SEGMENT, b"mask_format=png", Query(None, QueryParams(), MaskFormat.PNG, None)),
        (Task.SEGMENT, b"mask_format=polygon&masks=1", Query(None, QueryParams(), MaskFormat.POLYGON, None)),
        (Task.SEGMENT, b"view=labelmap", Query(None, QueryParams(), MaskFormat.RLE, View.LABEL_MAP, Medium.PNG)),
    ],
)
def test_values_are_read(task: Task, text: bytes, expected: Query) -> None:
    """Every parameter reaches the request that it belongs to, at both ends of its range."""
    assert read_query(task, text) == expected


@pytest.mark.parametrize(
    ("task", "text", "name"),
    [
        (Task.CLASSIFY, b"top_k=0", "top_k"),
        (Task.CLASSIFY, b"top_k=1001", "top_k"),
        (Task.CLASSIFY, b"top_k=-1", "top_k"),
        (Task.CLASSIFY, b"top_k=5.0", "top_k"),
        (Task.CLASSIFY, b"top_k=1_0", "top_k"),
        (Task.CLASSIFY, b"top_k=", "top_k"),
        (Task.CLASSIFY, "top_k=٣".encode(), "query string"),
        (Task.CLASSIFY, b"top_k=%D9%A3", "top_k"),
        (Task.CLASSIFY, b"top_k=" + b"9" * 5000, "top_k"),
        (Task.CLASSIFY, b"model=", "model"),
        (Task.CLASSIFY, b"model=%FF", "query string"),
        (Task.CLASSIFY, b"top_k=1&top_k=2", "top_k"),
        (Task.CLASSIFY, b"topk=3", "topk"),
        (Task.CLASSIFY, b"view=labelmap", "view"),
        (Task.CLASSIFY, b"score_threshold=0.5", "score_threshold"),
        (Task.DETECT, b"score_threshold=1.01", "score_threshold"),
        (Task.DETECT, b"score_threshold=-0.1", "score_threshold"),
        (Task.DETECT, b"score_threshold=nan", "score_threshold"),
        (Task.DETECT, b"score_threshold=inf", "score_threshold"),
        (Task.DETECT, b"score_threshold=high", "score_threshold"),
        (Task.DETECT, b"max_detections=0", "max_detections"),
        (Task.DETECT, b"max_detections=1001", "max_detections"),
        (Task.DETECT, b"masks=yes", "masks"),
        (Task.DETECT, b"mask_format=RLE", "mask_format"),
        (Task.DETECT, b"top_k=5", "top_k"),
        (Task.SEGMENT, b"view=overlay", "view"),
        (Task.SEGMENT, b"&".join(b"a=1" for _ in range(100)), "query string"),
    ],
)
def test_bad_values_are_named(task: Task, text: bytes, name: str) -> None:
    """A value out of range, a typo or another task's parameter is refused by name, never ignored."""
    with pytest.raises(BadParameter) as caught:
        read_query(task, text)
    assert name in caught.value.detail
    assert len(caught.value.detail) < 400


def test_lists_may_have_spaces() -> None:
    """Names in a list may be separated by a comma and a space, in every parameter that is a list."""
    assert ANALYZE_PARAMETERS["tasks"].parse("classify, detect") == (Task.CLASSIFY, Task.DETECT)
    assert ANALYZE_PARAMETERS["models"].parse("a, b@2") == ("a", "b@2")
    assert PARAMETERS["classes"].parse("cat, dog") == ("cat", "dog")


def test_unknown_parameter_lists_the_known() -> None:
    """The error of an unknown parameter lists those of the task."""
    with pytest.raises(BadParameter) as caught:
        read_query(Task.DETECT, b"limit=0.5")
    for name, parameter in PARAMETERS.items():
        assert (name in re.findall(r"\w+", caught.value.detail)) == (Task.DETECT in parameter.tasks)


@pytest.mark.parametrize(("header", "milliseconds"), [(None, None), ("1", 1), (" 250 ", 250), ("1000000000", 10**9)])
def test_timeout_is_read(header: str | None, milliseconds: int | None) -> None:
    """X-Request-Timeout-Ms is whole milliseconds, and may be left out."""
    assert read_timeout_ms(header) == milliseconds


@pytest.mark.parametrize("header", ["0", "-5", "1.5", "soon", "", "10s", "9" * 30])
def test_bad_timeout_is_refused(header: str) -> None:
    """A deadline that cannot be read is refused rather than replaced by another."""
    with pytest.raises(BadParameter, match="X-Request-Timeout-Ms"):
        read_timeout_ms(header)
