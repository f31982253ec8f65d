"""Options that several commands share, declared once: a command takes what they add up to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

__all__ = ["composed"]

Command = TypeVar("Command", bound=Callable[..., None])


def composed(**builders: Callable[..., Any]) -> Callable[[Command], Command]:
    """Let parameters of a command be built from options of their own.

    ``@composed(target=build_target)`` gives the command every parameter of ``build_target`` in the place of its
    parameter ``target``, and passes on what ``build_target`` returns for them. An option that the command declares
    under the same name takes the place of the builder's, and both get its value.

    Args:
        builders: parameter of the command -> function of typer parameters.
    """

    def decorate(command: Command) -> Command:
        parameters: list[inspect.Parameter] = []
        declared = {own.name for own in _parameters(command)} - set(builders)
        for own in _parameters(command):
            shared = _parameters(builders[own.name]) if own.name in builders else [own]
            parameters += [p for p in shared if p is own or p.name not in declared]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            built = {
                name: build(**{p.name: given[p.name] for p in _parameters(build)}) for name, build in builders.items()
            }
            command(**built, **{name: given[name] for name in declared})

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # typer would read the command's own signature
        return run  # type: ignore[return-value]

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """With annotations evaluated, as they come from several modules."""
    hints = get_type_hints(function, include_extras=True)
    return [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
