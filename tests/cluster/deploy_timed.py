"""Deploys on a cluster with workers of the fake device: `python -m tests.cluster.deploy_timed HEAD PORT SECONDS JSON`.

A process of its own: Ray's imports warn, and its connection is global.
"""

from __future__ import annotations

import sys
from functools import partial

from service.cluster.config_file import Deployment
from service.cluster.control import connected, deploy
from service.cluster.settings import ClusterSettings
from tests.cluster.timed_worker import serve_timed

DEPLOY_S = 240.0


def main(head: str, port: str, image_s: str, settings: str) -> None:
    deployment = Deployment(ClusterSettings.model_validate_json(settings), port=int(port))
    with connected(head):
        deploy(deployment, DEPLOY_S, serve_with=partial(serve_timed, image_s=float(image_s)), restart=image_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
