"""Metrics made of two others on the host: the update-to-weight ratio, and the gain of a module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradlab.frame import ABSENT, Schema, Series, is_absent


def with_derived(series: Mapping[str, Series]) -> dict[str, Series]:
    """`series`, and what follows from them.

    `update_ratio` is ‖Δw‖ / ‖w‖ of each parameter, w being the weights that the gradient was taken at, where both norms
    are watched. A ratio near 1e-3 is usual for a matrix under Adam or SGD with momentum.
    """
    result = dict(series)
    update, weight = series.get("update.norm"), series.get("weight.norm")
    if update is not None and weight is not None and update.schema.sites == weight.schema.sites:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = update.array / weight.array
        ratio[is_absent(update.array) | is_absent(weight.array)] = ABSENT
        result["update_ratio"] = Series(Schema("update_ratio", update.schema.sites), ratio)
    if (gains := _gains(series.get("output_grad.norm"))) is not None:
        result["gain"] = gains
    return result


def _gains(gradients: Series | None) -> Series | None:
    """‖∂L/∂input‖ / ‖∂L/∂output‖ of each site whose input is watched too."""
    if gradients is None:
        return None
    places = {site: index for index, site in enumerate(gradients.schema.sites)}
    sites = [site for site in places if f"{site}:in" in places]
    if not sites:
        return None
    output = gradients.array[[places[site] for site in sites]]
    into = gradients.array[[places[f"{site}:in"] for site in sites]]
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = into / output
    gain[is_absent(output) | is_absent(into)] = ABSENT
    return Series(Schema("gain", tuple(sites)), gain)
