"""Synthetic views of instances, cut out of photographs."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.synthetic.instances import cut_instances, cut_region
    from rrt_core.synthetic.rendering import (
        LEVELS,
        Level,
        Region,
        RenderedView,
        render_clutter,
        render_view,
        view_rng,
    )

__all__ = [
    "LEVELS",
    "Level",
    "Region",
    "RenderedView",
    "cut_instances",
    "cut_region",
    "render_clutter",
    "render_view",
    "view_rng",
]
__getattr__ = lazily(
    __name__,
    {
        "instances": ["cut_instances", "cut_region"],
        "rendering": [
            "LEVELS",
            "Level",
            "Region",
            "RenderedView",
            "render_clutter",
            "render_view",
            "view_rng",
        ],
    },
)
