"""The file that describes a deployment: a Serve config, as `serve deploy` reads it, or a KubeRay RayService around one.

Nothing here imports Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from service.cluster.settings import ClusterSettings

IMPORT_PATH = "service.cluster.app:build"
DEFAULT_NAME = "convmlp"
DEFAULT_HOST = "0.0.0.0"
DEFAULT_PORT = 8000


class InvalidConfig(Exception):
    """The file is no Serve config of this service; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One Serve application, and where every node's HAProxy listens."""

    settings: ClusterSettings
    name: str = DEFAULT_NAME
    route_prefix: str = "/"
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT


def read_config(path: Path) -> Deployment:
    """The deployment that a file describes.

    Raises:
        InvalidConfig: it cannot be read, or does not describe exactly one application of this service.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and document.get("kind") == "RayService":
            document = yaml.safe_load(document["spec"]["serveConfigV2"])
        applications = document["applications"]
        (application,) = [one for one in applications if one["import_path"] == IMPORT_PATH]
        http: dict[str, Any] = document.get("http_options") or {}
        return Deployment(
            ClusterSettings.model_validate(application.get("args") or {}),
            application.get("name", DEFAULT_NAME),
            application.get("route_prefix", "/"),
            http.get("host", DEFAULT_HOST),
            int(http.get("port", DEFAULT_PORT)),
        )
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InvalidConfig(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'args'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise InvalidConfig(f"{path}: {reasons}") from None
    except (AttributeError, KeyError, TypeError, ValueError, UnicodeDecodeError):
        raise InvalidConfig(
            f"{path} is no Serve config of this service: expected `applications` with one whose `import_path` is "
            f"{IMPORT_PATH}, as in deploy/ray/serve.yaml"
        ) from None
