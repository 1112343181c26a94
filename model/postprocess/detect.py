from __future__ import annotations

from model.types import Box, Detection, DetectOutput, DetectResult, Size, SoftMask


def name_detections(raw: DetectOutput, labels: tuple[str, ...], mask_threshold: float, size: Size) -> DetectResult:
    """The detections with their classes' names, by falling score as they come; masks stay unpasted."""
    masks = (
        [None] * len(raw.classes)
        if raw.mask_logits is None
        else [SoftMask(logits, mask_threshold) for logits in raw.mask_logits]
    )
    rows = zip(raw.classes.tolist(), raw.scores.tolist(), raw.boxes.tolist(), masks, strict=True)
    return DetectResult(
        size, tuple(Detection(labels[index], index, score, Box(*box), mask) for index, score, box, mask in rows)
    )
