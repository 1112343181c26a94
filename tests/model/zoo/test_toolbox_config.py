from __future__ import annotations

import pytest

from model.errors import BundleInvalid
from model.zoo.pipeline import PipelineParts, require_served
from model.zoo.toolbox_config import MAX_CHARACTERS, read_toolbox_config, toolbox_pipeline

IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}

MMDET_2 = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='MaskRCNN',
    test_cfg=dict(
        rpn=dict(nms_pre=900, max_per_img=800, nms=dict(type='nms', iou_threshold=0.6), min_bbox_size=0),
        rcnn=dict(score_thr=0.25, nms=dict(type='nms', iou_threshold=0.45), max_per_img=100, mask_thr_binary=0.4)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug',
        img_scale=(640, 480),
        flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
            dict(type='Pad', size_divisor=16),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img'])
        ])
]
data = dict(samples_per_gpu=2, test=dict(type='CocoDataset', pipeline=test_pipeline))
"""

MMDET_3 = """
data_preprocessor = dict(
    type='DetDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True, pad_size_divisor=32)
model = dict(
    type='RetinaNet', data_preprocessor=data_preprocessor,
    test_cfg=dict(nms_pre=700, min_bbox_size=0, score_thr=0.3, nms=dict(type='nms', iou_threshold=0.55)))
test_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=[
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path'))])))
"""

MMSEG_0 = """
test_cfg = dict(mode='whole')
data = dict(test=dict(pipeline=[
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], to_rgb=True)])]))
"""

MMPRETRAIN = """
test_pipeline = [
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224)]
"""


def parts_of(text: str) -> PipelineParts:
    return toolbox_pipeline(read_toolbox_config(text), "a source")


def test_mmdetections_former_configuration_is_read() -> None:
    """Sizes inside MultiScaleFlipAug, the normalisation, the padding, and the thresholds of both stages."""
    parts = parts_of(MMDET_2)
    assert (parts.long_side, parts.short_side, parts.pad_multiple) == (640, 480, 16)
    assert (parts.mean, parts.std) == (IMAGENET["mean"], IMAGENET["std"])
    assert parts.thresholds == {
        "score_threshold": 0.25,
        "nms_iou": 0.45,
        "mask_threshold": 0.4,
        "candidates_per_level": 900,
        "proposals": 800,
        "proposal_nms_iou": 0.6,
    }
    assert parts.problems == {}


def test_mmdetections_present_configuration_is_read() -> None:
    """The pipeline of a dataset inside a dataset; normalisation and padding of the model's preprocessor."""
    parts = parts_of(MMDET_3)
    assert (parts.long_side, parts.short_side, parts.pad_multiple) == (1000, 600, 32)
    assert (parts.mean, parts.std) == ((1, 2, 3), (4, 5, 6))
    assert parts.thresholds == {"score_threshold": 0.3, "nms_iou": 0.55, "candidates_per_level": 700}


def test_segmenters_and_classifiers_are_read() -> None:
    """A segmenter's bounds; a classifier's shorter side, crop and filter."""
    parts = parts_of(MMSEG_0)
    assert (parts.long_side, parts.short_side, parts.std) == (2048, 512, (255, 255, 255))
    assert parts.problems == {}
    parts = parts_of(MMPRETRAIN)
    assert (parts.resize, parts.crop, parts.interpolation) == (256, 224, "bicubic")


@pytest.mark.parametrize(
    ("resize", "fixed_size", "bounds"),
    [
        ("scale=(512, 256), keep_ratio=False", (512, 256), (None, None)),
        ("scale=(256, 512)", (256, 512), (None, None)),
        ("scale=512", (512, 512), (None, None)),
        ("scale=512, keep_ratio=True", None, (512, 512)),
        ("img_scale=(256, 512), keep_ratio=False", (256, 512), (None, None)),
        ("img_scale=(256, 512)", None, (512, 256)),
    ],
)
def test_a_resize_without_the_ratio_has_a_width_and_a_height(
    resize: str, fixed_size: tuple[int, int] | None, bounds: tuple[int | None, int | None]
) -> None:
    """mmcv 2's `scale` does not keep the ratio by default; the `img_scale` of the toolboxes before does."""
    parts = parts_of(f"test_pipeline = [dict(type='Resize', {resize})]")
    assert (parts.fixed_size, (parts.long_side, parts.short_side), parts.problems) == (fixed_size, bounds, {})


@pytest.mark.parametrize(
    ("text", "why", "flag"),
    [
        ("test_pipeline = [dict(type='Resize', scale=(64, 64), backend='pillow')]", "resizes with pillow", "size"),
        ("test_pipeline = [dict(type='Resize', scale=[(512, 512), (800, 600)])]", "resizes to", "size"),
        ("test_pipeline = [dict(type='Pad', size=(640, 640))]", "pads to a fixed size", "size"),
        ("model = dict(test_cfg=dict(mode='slide', crop_size=(512, 512)))", "windows that slide", "size"),
        (
            "test_pipeline = [dict(type='Normalize', mean=[103., 116., 123.], std=[1., 1., 1.], to_rgb=False)]",
            "in the order BGR",
            "normalisation",
        ),
        (
            "model = dict(data_preprocessor=dict(mean=[103., 116., 123.], std=[1., 1., 1.], bgr_to_rgb=False))",
            "in the order BGR",
            "normalisation",
        ),
        ("test_pipeline = [dict(type='ResizeEdge', scale=256)]", "resizes with OpenCV", "interpolation"),
        (
            "model = dict(test_cfg=dict(score_thr=.1, nms=dict(type='soft_nms')))",
            "soft_nms in place",
            "score_threshold",
        ),
    ],
)
def test_what_is_not_served_is_refused_unless_a_flag_replaces_it(text: str, why: str, flag: str) -> None:
    """The error has the reason and the flag."""
    parts = parts_of(text)
    with pytest.raises(BundleInvalid, match=rf"a source: .*{why}.*, which is not served; .*give --"):
        require_served(parts, frozenset())
    require_served(parts, frozenset({flag}))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 1\nb = a\nc = -2.5", {"a": 1, "b": 1, "c": -2.5}),
        ("a = [1, (2, 'x')]\nb = {'k': None, 3: 4}", {"a": [1, (2, "x")], "b": {"k": None}}),
        ("a = dict(b=dict(c=True), d=unknown)", {"a": {"b": {"c": True}}}),
        ("import os\na = os.getcwd()\nb = open('x')\nc = [i for i in range(9)]\nd = 9 ** 9", {}),
        ("a = dict([('b', 1)])\nb = dict(1, c=2)", {}),
        ("a: int = 3\na.b = 3\na = b = 3", {}),
        ("not python (", {}),
        ("a = 1\x00", {}),
        ("a = " + "(" * 5000 + ")" * 5000, {}),
        ("a = " + "-" * 3000 + "1", {}),
        ("a = 1 #" + "x" * MAX_CHARACTERS, {}),
    ],
    ids=["names", "containers", "dict", "code", "other dict", "other targets", "text", "null", "deep", "signs", "long"],
)
def test_a_configuration_is_data(text: str, found: dict[str, object]) -> None:
    """Literals, containers, `dict(...)` and names are evaluated; nothing else is, and nothing is run."""
    assert read_toolbox_config(text) == found
