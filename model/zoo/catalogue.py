"""All published checkpoints that can be downloaded or imported by name. Torch-free."""

from __future__ import annotations

from model.errors import BundleInvalid
from model.zoo.backbone_checkpoints import BACKBONE_CHECKPOINTS
from model.zoo.catalogue_entry import CatalogueEntry, LabelSet, read_labels
from model.zoo.convmlp_checkpoints import CONVMLP_CHECKPOINTS

__all__ = ["CATALOGUE", "CatalogueEntry", "LabelSet", "entry", "read_labels"]

CATALOGUE: dict[str, CatalogueEntry] = {entry.name: entry for entry in (*CONVMLP_CHECKPOINTS, *BACKBONE_CHECKPOINTS)}
"""By name: the file's name without `.pth`, or where the authors print none, the variant's name."""


def entry(name: str) -> CatalogueEntry:
    """The checkpoint of a name.

    Raises:
        BundleInvalid: the authors publish none of that name; lists the names.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        known = ", ".join(CATALOGUE)
        raise BundleInvalid(f"the authors publish no model {name!r}; known: {known}") from None
