"""Client of ConvMLP Serving: image classification, detection and segmentation over REST or gRPC, sync or async.

with Client("http://127.0.0.1:8000") as client:
    for label in client.classify("cat.jpg").labels:
        ...
"""

from __future__ import annotations

from convmlp_client.aio import AsyncClient
from convmlp_client.client import Client
from convmlp_client.errors import (
    BadImage,
    BadParameter,
    BadRequest,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    FetchFailed,
    FetchTimeout,
    Forbidden,
    Internal,
    ModelInvalid,
    NotAcceptable,
    NotFound,
    Overloaded,
    ProtocolError,
    RateLimited,
    RetryLater,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedEncoding,
    UnsupportedFormat,
    UrlRefused,
)
from convmlp_client.images import ImageInput, ImageUrl
from convmlp_client.many import Outcome
from convmlp_client.masks import Mask
from convmlp_client.parameters import MaskFormat
from convmlp_client.results import (
    Analysis,
    Classification,
    Detection,
    Detections,
    Embedding,
    Label,
    Meta,
    Model,
    Segment,
    Segmentation,
    Task,
)
from convmlp_client.retry import Retries

__all__ = [
    "Analysis",
    "AsyncClient",
    "BadImage",
    "BadParameter",
    "BadRequest",
    "Classification",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Detection",
    "Detections",
    "Embedding",
    "FetchFailed",
    "FetchTimeout",
    "Forbidden",
    "ImageInput",
    "ImageUrl",
    "Internal",
    "Label",
    "Mask",
    "MaskFormat",
    "Meta",
    "Model",
    "ModelInvalid",
    "NotAcceptable",
    "NotFound",
    "Outcome",
    "Overloaded",
    "ProtocolError",
    "RateLimited",
    "Retries",
    "RetryLater",
    "Segment",
    "Segmentation",
    "Task",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedEncoding",
    "UnsupportedFormat",
    "UrlRefused",
]
