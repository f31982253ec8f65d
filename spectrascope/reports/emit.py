"""An advice as something an optimizer takes: Python to paste, or YAML to load."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from spectrascope.records.advice import STEP_FORMULA, Advice, ParameterExponent
from spectrascope.text import printable

__all__ = ["Emission", "emit_advice", "emit_torch", "emit_yaml"]


class Emission(str, Enum):
    """Forms of parameter groups."""

    TORCH = "torch"
    YAML = "yaml"


def emit_advice(advice: Advice, form: Emission) -> str:
    """Give parameter groups in the form asked for."""
    return emit_torch(advice) if form is Emission.TORCH else emit_yaml(advice)


def emit_torch(advice: Advice) -> str:
    """Write Python that makes a ``SpectralNewton`` for a network called ``model``.

    Every name is a literal of its own, so a parameter's name cannot become code.
    """
    layouts = {p.name: p.layout for p in advice.parameters if p.layout != "flat"}
    lines = [
        *_comments(advice),
        "from spectrascope.optim import SpectralNewton",
        "",
        "exponents = {  # parameter: beta, damping relative to the squared size of its gradient",
        *(f"    {p.name!r}: ({p.beta!r}, {_digits(p)!r})," for p in advice.parameters),
        "}",
    ]
    extra = ""
    if layouts:
        lines += ["layouts = {", *(f"    {name!r}: {layout!r}," for name, layout in layouts.items()), "}"]
        extra = ', "layout": layouts.get(name, "flat")'
    lines += [
        "parameters = dict(model.named_parameters())",
        "groups = [",
        f'    {{"params": [parameters.pop(name)], "beta": beta, "damping": damping{extra}}}',
        "    for name, (beta, damping) in exponents.items()",
        "]",
        'groups.append({"params": list(parameters.values()), "beta": None})  # the rest: AdamW',
        "optimizer = SpectralNewton(groups, lr=0.02, scale_free=True, adamw_lr=1e-3)",
    ]
    return "\n".join(lines)


def emit_yaml(advice: Advice) -> str:
    """Write YAML that :func:`spectrascope.optim.parameter_groups` loads."""
    import yaml

    document = {
        "schema_version": advice.schema_version,
        "step": STEP_FORMULA,
        "parameters": {
            p.name: {
                "beta": p.beta,
                "damping": _digits(p),
                "absolute_damping": float(f"{p.damping:.6g}"),
                "layout": p.layout,
            }
            for p in advice.parameters
        },
        "adamw": list(advice.adamw),
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join([*_comments(advice), text.rstrip("\n")])


def _digits(parameter: ParameterExponent) -> float:
    return float(f"{parameter.relative_damping:.3g}")


def _comments(advice: Advice) -> list[str]:
    batch = advice.train_batch
    steps = f"steps on {batch} samples with momentum {advice.momentum:g}" if isinstance(batch, int) else batch.reason
    left = [f"undetermined, without an exponent, so AdamW's unless you decide: {name}" for name in advice.undetermined]
    about = [
        f"exponents for spectrascope.optim.SpectralNewton, measured on {advice.model.id} and {advice.data.id}",
        advice.known,
        f"damping for {steps}",
        *left,
        *advice.notes,
    ]
    return [f"# {line}" for line in _single_lines(about)]


def _single_lines(texts: Iterable[str]) -> list[str]:
    """Without line breaks or control characters, so that a file's name cannot end a comment."""
    return [printable(text, " ") for text in texts]
