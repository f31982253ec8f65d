"""Plain ``--help`` with the options in named groups; drawing it with rich takes twice as long."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

__all__ = ["SectionedCommand"]


class SectionedCommand(TyperCommand):
    """A command whose help lists each option under the panel it was declared for."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the arguments, then one section of options per panel, then the rest."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        rest: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            if parameter.param_type_name == "argument":
                sections["Arguments"].append(record)
            elif isinstance(panel, str):
                sections.setdefault(panel, []).append(record)
            else:
                rest.append(record)
        for title, records in {**sections, "Other": rest}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
