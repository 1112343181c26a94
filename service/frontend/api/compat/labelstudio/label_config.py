"""The labeling configuration of a Label Studio project: which controls there are for pictures, and their labels.

It is XML. Document types, and so entities, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from xml.parsers import expat

from service.errors import BadRequest
from service.frontend.core.parameters import SCORE_THRESHOLD, shown, split_names

MAX_CONFIG = 2**20
"""Characters."""
MAX_DEPTH = 100
"""Of elements in elements."""
MAX_CONTROLS = 32
"""Each may need a model of its own."""


class ControlTag(StrEnum):
    """The controls that are answered, by their tags."""

    RECTANGLES = "RectangleLabels"
    BRUSH = "BrushLabels"
    POLYGONS = "PolygonLabels"
    CHOICES = "Choices"


LABEL_TAGS = frozenset({"Label", "Choice"})
ANSWERED = ", ".join(ControlTag)


@dataclass(frozen=True, slots=True)
class Control:
    """A control of pictures.

    `to_name` is the name of its Image and `picture` the key of that in a task's data. `labels`: by a model's label in
    lower case, the value that stands in results. `model` is the name in `model_name`;
    `score_threshold` that in `model_score_threshold`, 0 to 1; None where they are not given. `multiple`: of a picture
    several choices may be set.
    """

    tag: ControlTag
    name: str
    to_name: str
    picture: str
    labels: Mapping[str, str]
    model: str | None = None
    score_threshold: float | None = None
    multiple: bool = False


def parse_label_config(text: str) -> tuple[Control, ...]:
    """The controls in a configuration that are answered. Others are left out, and those with `model_skip="true"`.

    Raises:
        BadRequest: it is no XML, is too large, has a document type, or an attribute of a control is invalid.
    """
    if len(text) > MAX_CONFIG:
        raise BadRequest(f"the label config has {len(text):,} characters; at most {MAX_CONFIG:,} are read")
    reader = _Reader()
    parser = expat.ParserCreate("utf-8")  # the text's own declaration does not count
    parser.StartDoctypeDeclHandler = reader.refuse_document_type
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        raise BadRequest(f"the label config is not valid XML: {error}") from None
    return reader.controls()


@dataclass(slots=True)
class _Draft:
    """A control whose element was read."""

    tag: ControlTag
    attributes: Mapping[str, str]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Reader:
    """Takes the events of the parser."""

    pictures: dict[str, str] = field(default_factory=dict)
    drafts: list[_Draft] = field(default_factory=list)
    open: list[_Draft | None] = field(default_factory=list)
    """Of each open element the control that labels in it belong to."""

    def refuse_document_type(self, *_: object) -> None:
        raise BadRequest("the label config has a document type; remove <!DOCTYPE …>")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.open) == MAX_DEPTH:
            raise BadRequest(f"the label config has more than {MAX_DEPTH} elements in each other")
        control = self.open[-1] if self.open else None
        if tag in LABEL_TAGS:
            if control is not None:
                _add_label(control.labels, attributes)
            control = None  # results have choices in choices as paths, which no model gives
        elif "name" in attributes and "toName" in attributes:
            control = _Draft(ControlTag(tag), attributes) if tag in set(ControlTag) else None
            if control is not None:
                if len(self.drafts) == MAX_CONTROLS:
                    raise BadRequest(f"the label config has more than {MAX_CONTROLS} controls of {ANSWERED}")
                self.drafts.append(control)
        elif tag == "Image" and "name" in attributes and attributes.get("value", "").startswith("$"):
            self.pictures[attributes["name"]] = attributes["value"][1:]
        self.open.append(control)

    def end(self, _tag: str) -> None:
        self.open.pop()

    def controls(self) -> tuple[Control, ...]:
        found = (self._control(draft) for draft in self.drafts)
        return tuple(control for control in found if control is not None)

    def _control(self, draft: _Draft) -> Control | None:
        attributes = draft.attributes
        to_name = next((name for name in split_names(attributes["toName"]) if name in self.pictures), None)
        skipped = "true" in (attributes.get("perRegion"), attributes.get("model_skip"))
        if to_name is None or skipped:
            return None
        return Control(
            draft.tag,
            attributes["name"],
            to_name,
            self.pictures[to_name],
            draft.labels,
            attributes.get("model_name") or None,
            _threshold(attributes),
            attributes.get("choice") == "multiple",
        )


def _add_label(labels: dict[str, str], attributes: Mapping[str, str]) -> None:
    """The names of one label: its own, and those in `predicted_values`. Of equal names the first label counts."""
    value, predicted = attributes.get("value", ""), attributes.get("predicted_values", "")
    written = attributes.get("alias") or value
    if written:
        # Names may have commas themselves.
        for name in (value, written, predicted, *split_names(predicted)):
            if name.strip():
                labels.setdefault(name.strip().casefold(), written)


def _threshold(attributes: Mapping[str, str]) -> float | None:
    text = attributes.get("model_score_threshold")
    if text is None:
        return None
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if threshold not in SCORE_THRESHOLD:
        raise BadRequest(
            f"the label config's control {shown(attributes['name'])} has model_score_threshold {shown(text)}; "
            f"expected {SCORE_THRESHOLD}"
        )
    return threshold
