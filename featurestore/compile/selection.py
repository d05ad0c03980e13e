"""What an item of a feature list names: `view:feature`, a view, some of its features, an alias.

Requests, services and on-demand views all refer to features here, by the same rules and with the
same errors.
"""

from __future__ import annotations

from collections.abc import Mapping

from featurestore.compile.plan import Catalog, OnDemandPlan, Selection, ViewPlan
from featurestore.errors import FeatureNotFoundError, RequestError, listing, near_miss
from featurestore.model.declarations import FeatureSelection, FeatureView, OnDemandFeatureView

Selectable = str | FeatureView | OnDemandFeatureView | FeatureSelection


def as_selection(catalog: Catalog, item: Selectable) -> Selection:
    """Return the selection that an item of a feature list names; all features by default."""
    try:
        return select({**catalog.views, **catalog.on_demand}, item)
    except FeatureNotFoundError as error:
        error.hint = error.hint or "Run 'featurestore apply' if it is new."
        raise


def select(plans: Mapping[str, ViewPlan | OnDemandPlan], item: Selectable) -> Selection:
    """Return the selection that an item names among these views.

    Raises:
        FeatureNotFoundError: It names no view or no feature; the near miss is suggested.
        RequestError: It is no reference, or its alias makes no sense.
    """
    if isinstance(item, str):
        view, _, feature = item.partition(":")
        wanted = (feature,) if feature else None
        return _selection(plans, view, wanted, view, {})
    if isinstance(item, FeatureSelection):
        alias = item.alias_name or item.view
        return _selection(plans, item.view, item.features, alias, item.join_keys)
    if isinstance(item, FeatureView | OnDemandFeatureView):
        return _selection(plans, item.name, None, item.name, {})
    raise RequestError(
        "A feature list holds something that names no feature.",
        got=repr(item),
        allowed="'view:feature', a view, view['feature'] or view.alias(...)",
    )


def _selection(
    plans: Mapping[str, ViewPlan | OnDemandPlan],
    view: str,
    features: tuple[str, ...] | None,
    alias: str,
    join_keys: dict[str, str],
) -> Selection:
    plan = plans.get(view)
    if plan is None:
        raise FeatureNotFoundError(
            f"'{view}' names no feature view.",
            allowed=listing(plans),
            hint=near_miss(view, plans),
        )
    known = [feature.name for feature in plan.features]
    for feature in features or ():
        if feature not in known:
            close = near_miss(feature, known)
            raise FeatureNotFoundError(
                f"'{view}:{feature}' names no feature.",
                allowed=f"'{view}' has: {listing(known)}",
                hint=close and close.replace("'", f"'{view}:", 1),
            )
    _check_alias(plan, alias, join_keys)
    wanted = tuple(dict.fromkeys(features or known))
    return Selection(view=view, features=wanted, alias=alias, join_keys=join_keys)


def _check_alias(plan: ViewPlan | OnDemandPlan, alias: str, join_keys: dict[str, str]) -> None:
    if isinstance(plan, OnDemandPlan):
        if alias != plan.name or join_keys:
            raise RequestError(
                f"The on-demand view '{plan.name}' cannot have an alias.",
                hint="Give the aliases to the views that it takes its inputs from.",
            )
        return
    keys = [key.name for key in plan.join_keys]
    for key in join_keys:
        if key not in keys:
            raise RequestError(
                f"The alias '{alias}' maps '{key}', which is no join key of '{plan.name}'.",
                allowed=listing(keys),
                hint=near_miss(key, keys),
            )
