"""Prints what KServe's SDK makes of the service's answers.

python kserve_sdk.py URL GRPC_ADDRESS MODEL PICTURE
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL, GRPC_ADDRESS, MODEL, PICTURE = sys.argv[1:]
IMAGE = Path(PICTURE).read_bytes()


def request_of(*images: bytes, binary: bool = True, model: str = MODEL) -> InferRequest:
    tensor = InferInput("image", [len(images)], "BYTES")
    if binary:
        tensor.set_data_from_numpy(np.array(images, dtype=object), binary_data=True)
    else:
        tensor = InferInput("image", [len(images)], "BYTES", [base64.b64encode(image).decode() for image in images])
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="mine")


def labels_of(response: Any) -> list[str]:  # noqa: ANN401  (kserve's)
    (output,) = [output for output in response.outputs if output.name == "labels"]
    texts = np.asarray(output.as_numpy())[0].tolist()
    return [text.decode() if isinstance(text, bytes) else text for text in texts]


async def main() -> None:
    rest = InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))
    printed: dict[str, Any] = {
        "ready": [
            await rest.is_server_live(URL),
            await rest.is_server_ready(URL),
            await rest.is_model_ready(URL, MODEL),
        ],
        "json": labels_of(await rest.infer(URL, request_of(IMAGE, binary=False), model_name=MODEL)),
        "binary": labels_of(await rest.infer(URL, request_of(IMAGE), model_name=MODEL)),
        "errors": [],
    }
    for request, model in ((request_of(b"no picture"), MODEL), (request_of(IMAGE, model="nothing"), "nothing")):
        try:
            await rest.infer(URL, request, model_name=model)
        except httpx.HTTPStatusError as error:
            printed["errors"].append(str(error))
    await rest.close()
    rpc = InferenceGRPCClient(GRPC_ADDRESS)
    printed["grpc_ready"] = [await rpc.is_server_live(), await rpc.is_server_ready(), await rpc.is_model_ready(MODEL)]
    response = await rpc.infer(request_of(IMAGE))
    printed["grpc"], printed["id"] = labels_of(response), response.id
    await rpc.close()
    print(json.dumps(printed))


asyncio.run(main())
