"""The commands whose flags are settings: what a shell completes behind them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from typer.core import TyperCommand

from service.cli.parts import SETTINGS_OF
from service.settings import Settings


class PartCommand(TyperCommand):
    """A command that parses no flag itself: `service.cli.flags` does. Click's types are Any, as in `LazyGroup`."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:  # noqa: ANN401
        """The flags of this part that begin so, or behind a flag with few values, those."""
        before = ctx.args[-1] if ctx.args else ""
        if choices := choices_of(before):
            return [_item(choice) for choice in choices if choice.startswith(incomplete)]
        named = {f"--{name.replace('_', '-')}": Settings.model_fields[name].description for name in self._settings()}
        return [_item(flag, help_of(text)) for flag, text in sorted(named.items()) if flag.startswith(incomplete)]

    def _settings(self) -> frozenset[str]:
        return SETTINGS_OF.get(self.name or "", SETTINGS_OF["serve"])


def choices_of(flag: str) -> tuple[str, ...]:
    """The values of a flag, if it takes one of few."""
    field = Settings.model_fields.get(flag.removeprefix("--").replace("-", "_"))
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return tuple(map(str, get_args(field.annotation)))


def help_of(description: str | None) -> str:
    """The first sentence of a setting's description."""
    return " ".join((description or "").split()).partition(". ")[0]


def _item(value: str, text: str = "") -> Any:  # noqa: ANN401
    # typer has a Click of its own from some version on.
    core = next(base.__module__ for base in TyperCommand.__mro__ if base.__module__.endswith("click.core"))
    return import_module(f"{core.removesuffix('.core')}.shell_completion").CompletionItem(value, help=text)
