"""What the commands that change the model store share: options, its folder, errors, and how a model is printed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import Bundle
from model.errors import ConvMLPError
from service.cli.console import print_error, print_output, printable
from service.cli.flags import settings_or_exit

Store = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR", file_okay=False, help="Folder of the models. It is created if necessary."
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR",
        exists=True,
        file_okay=False,
        help="Folder of models, in addition to the embedded ones.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]


def store_or_exit(models_dir: Path | None) -> Path:
    """The folder of the models, from the flag or the settings. Raises typer.Exit if none is set."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    if store is None:
        print_error("set the folder of the models: --models-dir DIR, CONVMLP_MODELS_DIR, or models_dir in convmlp.toml")
        raise typer.Exit(2)
    return store


def print_model(bundle: Bundle) -> None:
    config = bundle.config
    facts = [
        config.task.value,
        config.architecture.title,
        f"{len(config.labels)} labels",
        f"{bundle.weights_path.stat().st_size / 1e6:.1f} MB",
    ]
    print_output(printable(f"{config.name}: {', '.join(facts)} -> {bundle.folder}"))


EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx"}
"""The extra that a module belongs to, if it is not `worker`."""


@contextmanager
def errors_to_exit() -> Iterator[None]:
    """Turns errors into a message and exit status 1."""
    try:
        yield
    except ConvMLPError as error:
        print_error(error.detail)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "", "worker")
        print_error(f"this command needs {error.name}, which is not installed; install this package's extra `{extra}`")
    except BrokenPipeError:  # typer ends the command quietly when a reader such as `head` closes the pipe
        raise
    except OSError as error:
        print_error(f"{error.filename or 'the store'} cannot be written: {error.strerror}")
    else:
        return
    raise typer.Exit(1)
