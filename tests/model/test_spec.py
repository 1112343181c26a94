from __future__ import annotations

import hashlib
import json

from model.bundle import BundleConfig, find_bundle, read_bundle
from model.spec import CenterCropSpec, ClassifyPostSpec


def test_added_fields_with_defaults_leave_versions_as_they_were() -> None:
    """What clients and workers stored for a version stays valid with new fields; other values count."""
    config = read_bundle(find_bundle("convmlp_pets_breed", None)).config
    document = json.loads(config.model_dump_json())
    added: dict[str, dict[str, object]] = {
        "preprocessing": {"interpolation": "bicubic", "squash": False},
        "postprocessing": {"activation": "softmax", "score_threshold": 0.0},
    }
    for part, defaults in added.items():
        assert {name: document[part].pop(name) for name in defaults} == defaults
    document["accuracy"] = None  # figures are not part of it
    assert [document.pop(name) for name in ("quantisation", "palette")] == [None, None]
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    assert config.version == hashlib.sha256(text.encode()).hexdigest()[:16]
    # A config without the fields, as bundles of former versions have it, is the same one.
    assert BundleConfig.model_validate_json(text) == config.model_copy(update={"accuracy": None})
    assert isinstance(config.preprocessing, CenterCropSpec)
    bilinear = config.preprocessing.model_copy(update={"interpolation": "bilinear"})
    sigmoid = ClassifyPostSpec(activation="sigmoid", score_threshold=0.5)
    changed = [config.model_copy(update=one) for one in ({"preprocessing": bilinear}, {"postprocessing": sigmoid})]
    assert len({config.version, *(one.version for one in changed)}) == 3
