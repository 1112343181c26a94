"""From a catalogue entry to what a bundle's config says."""

from __future__ import annotations

from model.net.weights import BundleDraft
from model.zoo.catalogue import CatalogueEntry


def published_draft(entry: CatalogueEntry) -> BundleDraft:
    """The config of a published checkpoint, its weights kept in the float32 that they come in."""
    return BundleDraft(
        name=entry.name,
        architecture=entry.architecture,
        labels=entry.labels,
        preprocessing=entry.preprocessing,
        postprocessing=entry.postprocessing,
        precision="fp32",
        source=entry.source,
        accuracy=entry.accuracy,
    )
