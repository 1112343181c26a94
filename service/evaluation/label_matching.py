"""Which of a model's classes each label of a data set is."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.evaluation.dataset import DataFormat, DataInvalid, Dataset, listed

WORDNET_ID = re.compile(r"n\d{8}")
MAX_BYTES = 16 << 20
IGNORED = ("", "-", "null", "none", "ignore")
"""In the second column of a map: such labels are left out."""

LabelMap = Mapping[str, str | int | None]
"""By label of the data set: a label or class index of the model; None leaves it out."""


def class_indices(
    dataset: Dataset, model_labels: Sequence[str], label_map: LabelMap | None, ignored: int | None
) -> dict[str, int | None]:
    """The class index of each label of a data set, or of each value of its masks; None for what is left out.

    Raises:
        DataInvalid: a label matches none of the model's, or several do one; or the map has a class that it lacks.
    """
    if dataset.format is DataFormat.MASKS:
        return mask_value_indices(ignored, label_map, model_labels)
    return match_labels(dataset.labels, model_labels, label_map)


def match_labels(
    labels: Sequence[str], model_labels: Sequence[str], label_map: LabelMap | None = None
) -> dict[str, int | None]:
    """The class index of each label of the data set; None for one that is left out.

    Labels match by name: exactly, or else without regard to case, `_` and spaces. Labels that are all numbers are
    indices, if none is a name. As many WordNet ids as the model has classes are in ImageNet's order: sorted.

    Raises:
        DataInvalid: a label matches none of the model's, or several do one.
    """
    given = dict(label_map or {})
    found: dict[str, int | None] = {}
    rest = [label for label in labels if label not in given]
    for label in labels:
        if label in given:
            found[label] = _mapped(label, given[label], model_labels)
    matched = (match(rest, model_labels) for match in (_by_name, _by_number, _by_wordnet_id))
    indices = next((one for one in matched if one is not None), None)
    if indices is None:
        raise DataInvalid(_mismatch(rest, model_labels))
    found.update(indices)
    _require_distinct(found, rest, model_labels)
    return {label: found[label] for label in labels}


def mask_value_indices(
    ignored: int | None, label_map: LabelMap | None, model_labels: Sequence[str]
) -> dict[str, int | None]:
    """The class index of each value of a mask, as decimal text: the value itself, or as the map has it.

    Raises:
        DataInvalid: the map names a class that the model does not have.
    """
    found: dict[str, int | None] = {str(index): index for index in range(len(model_labels))}
    if ignored is not None:
        found[str(ignored)] = None
    for label, target in (label_map or {}).items():
        found[label] = _mapped(label, target, model_labels)
    return found


def read_label_map(path: Path) -> LabelMap:
    """Read a map: a JSON object, or CSV with two columns: label of the data set, label or class index of the model.

    Raises:
        DataInvalid: the file cannot be read, or is neither.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{path} is not UTF-8 text") from error
    if len(data) > MAX_BYTES:
        raise DataInvalid(f"{path} has more than {MAX_BYTES:,} bytes; expected a map of labels")
    return _map_from_json(path, text) if text.lstrip()[:1] == "{" else _map_from_csv(path, text)


def _map_from_json(path: Path, text: str) -> LabelMap:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{path} is not valid JSON: {error}") from error
    for label, target in value.items():
        if not (target is None or isinstance(target, str) or type(target) is int):
            raise DataInvalid(f"{path}: the target of {label!r} is neither a label, nor a class index, nor null")
    found: LabelMap = value
    return found


def _map_from_csv(path: Path, text: str) -> LabelMap:
    delimiter = max("\t;,", key=text.partition("\n")[0].count)
    found: dict[str, str | int | None] = {}
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), start=1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != 2:
            raise DataInvalid(
                f"{path}: line {number} has {len(row)} columns; expected a data set's label and a model's"
            )
        label, target = (cell.strip() for cell in row)
        found[label] = None if target.lower() in IGNORED else target
    if not found:
        raise DataInvalid(f"{path} is empty; expected a map of labels")
    return found


def _mapped(label: str, target: str | int | None, model_labels: Sequence[str]) -> int | None:
    if target is None:
        return None
    if isinstance(target, str):
        if target in model_labels:
            return list(model_labels).index(target)
        if not target.isdecimal():
            raise DataInvalid(f"the map gives {label!r} the label {target!r}, which the model does not have")
        target = int(target)
    if not 0 <= target < len(model_labels):
        raise DataInvalid(f"the map gives {label!r} the class {target}; the model's are 0 to {len(model_labels) - 1}")
    return target


def _by_name(labels: Sequence[str], model_labels: Sequence[str]) -> dict[str, int] | None:
    exact = {label: index for index, label in reversed(list(enumerate(model_labels)))}
    loose = {_normalised(label): index for label, index in exact.items()}
    found = {label: exact.get(label, loose.get(_normalised(label), -1)) for label in labels}
    return None if -1 in found.values() else found


def _by_number(labels: Sequence[str], model_labels: Sequence[str]) -> dict[str, int] | None:
    if all(label.isascii() and label.isdecimal() and int(label) < len(model_labels) for label in labels):
        return {label: int(label) for label in labels}
    return None


def _by_wordnet_id(labels: Sequence[str], model_labels: Sequence[str]) -> dict[str, int] | None:
    if len(labels) == len(model_labels) and all(map(WORDNET_ID.fullmatch, labels)):
        return {label: index for index, label in enumerate(sorted(labels))}
    return None


def _mismatch(labels: Sequence[str], model_labels: Sequence[str]) -> str:
    known = {_normalised(label) for label in model_labels}
    strange = [label for label in labels if _normalised(label) not in known]
    own = {_normalised(label) for label in labels}
    unused = [label for label in model_labels if _normalised(label) not in own]
    more = ""
    if all(map(WORDNET_ID.fullmatch, labels)):
        more = (
            f"; {len(labels)} WordNet ids match only a model with as many classes, and this one has {len(model_labels)}"
        )
    return (
        f"labels of the data set that the model does not have: {listed(strange)}; the model's that the data set does "
        f"not have: {listed(unused) or 'none'}{more}; --map FILE gives labels other names, or leaves them out"
    )


def _require_distinct(found: Mapping[str, int | None], matched: Sequence[str], model_labels: Sequence[str]) -> None:
    """Only a map may give two labels one class."""
    taken: dict[int, str] = {}
    for label in matched:
        index = found[label]
        if index is not None and (other := taken.setdefault(index, label)) != label:
            raise DataInvalid(
                f"the labels {other!r} and {label!r} of the data set both match {model_labels[index]!r}; --map FILE "
                "gives one of them another class"
            )


def _normalised(label: str) -> str:
    return " ".join(re.split(r"[\s_]+", label.strip().casefold()))
