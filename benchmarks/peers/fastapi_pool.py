"""FastAPI and a pool of threads, one picture a call: the usual first version, without a serving framework.

As a no-op it answers at once from the event loop: the maximum of a REST server of this kind.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from benchmarks.peers.classifier import NOOP, Classes, Classifier, PeerSettings

settings = PeerSettings.from_environment()
classifier = Classifier(settings)
pool = ThreadPoolExecutor(settings.workers)
app = FastAPI()


def answer(jpeg: bytes) -> Classes:
    return classifier.classify([classifier.decode(jpeg)])[0]


@app.post("/predict")
async def predict(request: Request) -> Response:
    jpeg = await request.body()
    if settings.network == NOOP:
        return JSONResponse(answer(jpeg))
    return JSONResponse(await asyncio.get_running_loop().run_in_executor(pool, answer, jpeg))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=settings.port, log_level="warning", access_log=False)
