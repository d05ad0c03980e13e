"""What an aggregated feature is, in one line for people: `mean(dep_delay) over 1h, hop 1m`.

For plans, descriptions and explanations; nothing is decided by these texts.
"""

from __future__ import annotations

from featurestore.compile.plan import AggregatePlan, ViewPlan

_UNITS = (
    (86_400_000_000, "d"),
    (3_600_000_000, "h"),
    (60_000_000, "m"),
    (1_000_000, "s"),
    (1_000, "ms"),
    (1, "us"),
)


def duration(microseconds: int) -> str:
    """Return a duration as definitions write it.

    >>> duration(5_400_000_000), duration(-86_400_000_000)
    ('90m', '-1d')
    """
    sign = "-" if microseconds < 0 else ""
    size = abs(microseconds)
    step, unit = next((s, u) for s, u in _UNITS if size % s == 0)
    return f"{sign}{size // step}{unit}"


def aggregate_texts(view: ViewPlan) -> dict[str, str]:
    """Return {feature: what it is} of an aggregated view; empty for another."""
    pairs = zip(view.features, view.aggregates, strict=bool(view.aggregates))
    return {feature.name: _text(view, plan) for feature, plan in pairs}


def _text(view: ViewPlan, plan: AggregatePlan) -> str:
    inside = [] if plan.input is None else [_expression(view, plan.input)]
    options = {
        "by": None if plan.by is None else _expression(view, plan.by),
        "k": plan.k,
        "limit": plan.limit,
        "element_wise": plan.element_wise or None,
        "quantile": plan.quantile,
        "relative_error": plan.relative_error,
        "default": plan.default,
    }
    inside += [f"{name}={value}" for name, value in options.items() if value is not None]
    window = plan.window
    parts = ["lifetime" if window.size is None else duration(window.size)]
    if window.size is not None:
        parts.append(f"hop {duration(window.hop)}")
    if window.head_hop != 1:
        parts.append(f"head hop {duration(window.head_hop)}")
    if window.offset:
        parts.append(f"offset {duration(window.offset)}")
    return f"{plan.function}({', '.join(inside)}) over {', '.join(parts)}"


def _expression(view: ViewPlan, index: int) -> str:
    text = " ".join((view.inputs[index].expression or "").split())
    plain = text.strip('"')
    return plain if f'"{plain}"' == text else text.removeprefix("( ").removesuffix(" )")
