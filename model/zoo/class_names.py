"""Class names: in a checkpoint, beside it, or in a file of their own."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import BundleInvalid
from model.files import open_regular
from model.zoo.checkpoint_file import CheckpointFile, read_json
from model.zoo.unpickling import Placeholder

MAX_BYTES = 2**26
"""Of a file of class names. COCO's annotations of the validation part have 20 MB."""
MAX_CLASSES = 100_000
MAX_LISTED = 3
"""Names in a note."""

_WORDNET_ID = re.compile(r"n\d{8}")
_NAME_COLUMNS = ("name", "label", "class", "class_name", "words", "synset_words")
_INDEX_COLUMNS = ("index", "idx", "id", "class_index", "class_id", "label_id")
_KEYS = (
    "class_names",
    "classes",
    "CLASSES",
    "label_names",
    "labels",
    "names",
    "id2label",
    "idx_to_class",
    "class_to_idx",
)
"""Keys under which trainers store class names, in a checkpoint or in its metadata."""
_PLACES = ("meta", "meta.dataset_meta", "", "hyper_parameters", "datamodule_hyper_parameters", "args", "config")
"""Where in a checkpoint these keys are; of an object its attributes."""


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Names by class index, and where they were found, for people."""

    names: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        more = ", …" if len(self.names) > MAX_LISTED else ""
        return f"{', '.join(self.names[:MAX_LISTED])}{more} ({self.source})"


def stored_class_names(file: CheckpointFile) -> ClassNames | None:
    """The class names in a checkpoint, or in the configuration beside it; None if neither has any."""
    if (found := _named_in(file.content, _PLACES, "in the file")) is not None:
        return found
    for key, text in file.metadata.items():
        if key in _KEYS:
            try:
                names = _names(json.loads(text))
            except (ValueError, RecursionError):
                continue
            if names is not None:
                return ClassNames(names, f"{key} in the file's header")
    for path in file.configs:
        if (found := _named_in(read_json(path), ("", "pretrained_cfg"), f"in {path.name}")) is not None:
            return found
    return None


def _named_in(content: object, places: Sequence[str], where: str) -> ClassNames | None:
    """The first of `_KEYS` at one of the places that has names."""
    for place in places:
        holder = mapping_at(content, place)
        for key in _KEYS:
            if (names := _names(holder.get(key))) is not None:
                return ClassNames(names, f"{place}.{key} {where}".removeprefix("."))
    return None


def mapping_at(content: object, place: str) -> Mapping[object, object]:
    """The mapping at a dotted place; an empty one if there is none."""
    for key in filter(None, place.split(".")):
        content = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(content, Placeholder):
        return content.attributes
    return content if isinstance(content, Mapping) else {}


def _names(value: object) -> tuple[str, ...] | None:
    """Names by class index of a sequence, a mapping index → name, or name → index. None if it is neither."""
    if isinstance(value, Mapping):
        if value and all(type(index) is int for index in value.values()):
            inverse = {index: name for name, index in value.items()}
            return _by_index(inverse) if len(inverse) == len(value) else None
        return _by_index(value)
    if not isinstance(value, (tuple, list)) or not 0 < len(value) <= MAX_CLASSES:
        return None
    if not all(isinstance(name, str) and name.strip() for name in value):
        return None
    return tuple(value)


def _by_index(value: Mapping[object, object]) -> tuple[str, ...] | None:
    """Names of a mapping whose keys are 0 to n - 1, as numbers or as text."""
    found: dict[int, str] = {}
    for index, name in value.items():
        if not (isinstance(name, str) and name.strip() and str(index).isdecimal()):
            return None
        found[int(str(index))] = name
    if not 0 < len(found) <= MAX_CLASSES or sorted(found) != list(range(len(value))):
        return None
    return tuple(found[index] for index in range(len(found)))


def read_class_names(path: Path) -> list[str]:
    """Read a file of class names: text with one per line, JSON or CSV.

    JSON is a list of names, an object index → name or name → index, or COCO's annotations, whose categories are in the
    order of their ids. CSV has a column of names, and of indices if they are not in order. A line of text may begin
    with a WordNet id.

    Raises:
        BundleInvalid: the file cannot be read, or is none of these; names the line.
    """
    text = read_text(path, "a file of class names")
    if is_json(text):
        return _from_json(path, text)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(path, text)
    return _from_lines(path, text)


def read_text(path: Path, expected: str) -> str:
    """A file's text. Raises BundleInvalid: it cannot be read, is too large to be what is `expected`, or not UTF-8."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise BundleInvalid(f"{path} has more than {MAX_BYTES:,} bytes; expected {expected}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BundleInvalid(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def is_json(text: str) -> bool:
    """Whether it is an array or an object, as far as its first letter shows."""
    return text.lstrip()[:1] in ("[", "{")


def _from_lines(path: Path, text: str) -> list[str]:
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise BundleInvalid(f"{path} is empty; expected one name per line")
    if "" in names:
        raise BundleInvalid(f"{path}: line {names.index('') + 1} is empty; expected one name per line")
    split = [name.split(maxsplit=1) for name in names]
    if all(len(parts) == 2 and _WORDNET_ID.fullmatch(parts[0]) for parts in split):
        return [name for _, name in split]
    return names


def _from_json(path: Path, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path} is not valid JSON: {error}") from error
    if isinstance(value, Mapping) and isinstance(value.get("categories"), list):
        return _coco_categories(path, value["categories"])
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return _coco_categories(path, value)
    if isinstance(value, Mapping) and value and all(_is_pair(pair) for pair in value.values()):
        value = {index: name for index, (_, name) in value.items()}  # ImageNet's index → [WordNet id, name]
    names = _names(value)
    if names is None:
        raise BundleInvalid(
            f"{path} has no class names; expected a JSON list of names, an object of index → name with the indices "
            "from 0 without gaps, or COCO's categories"
        )
    return list(names)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _coco_categories(path: Path, categories: Sequence[object]) -> list[str]:
    """The names by rising id, which is how the toolboxes number COCO's classes."""
    found: dict[int, str] = {}
    for number, category in enumerate(categories):
        identity = category.get("id") if isinstance(category, Mapping) else None
        name = category.get("name") if isinstance(category, Mapping) else None
        if type(identity) is not int or not isinstance(name, str) or not name.strip():
            raise BundleInvalid(f"{path}: category {number} has no id and name; expected COCO's categories")
        if identity in found:
            raise BundleInvalid(f"{path}: two categories have the id {identity}")
        found[identity] = name
    if not found:
        raise BundleInvalid(f"{path} has no categories")
    return [found[identity] for identity in sorted(found)]


def _from_csv(path: Path, text: str) -> list[str]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" or "\t" in text.partition("\n")[0] else ","
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    if not rows:
        raise BundleInvalid(f"{path} is empty; expected a row for each class")
    header = [cell.strip().lower() for cell in rows[0]]
    name_column = next((header.index(column) for column in _NAME_COLUMNS if column in header), None)
    index_column = next((header.index(column) for column in _INDEX_COLUMNS if column in header), None)
    first = 1
    if name_column is None:
        first, cells = (0, [cell.strip() for cell in rows[0]])
        index_column = next((at for at, cell in enumerate(cells) if cell.isdecimal()), None)
        others = [at for at, cell in enumerate(cells) if at != index_column and not _WORDNET_ID.fullmatch(cell)]
        name_column = others[0] if others else 0
    needed = max(name_column, index_column or 0)
    for number, row in enumerate(rows[first:], start=first + 1):
        if len(row) <= needed or not row[name_column].strip():
            raise BundleInvalid(f"{path}: row {number} has no name; expected one in column {name_column + 1}")
    names = [row[name_column].strip() for row in rows[first:]]
    if index_column is None:
        return names
    found = _by_index({row[index_column].strip(): name for row, name in zip(rows[first:], names, strict=True)})
    if found is None or len(found) != len(names):
        raise BundleInvalid(
            f"{path}: the indices in column {index_column + 1} are not 0 to {len(names) - 1}, each once"
        )
    return list(found)
