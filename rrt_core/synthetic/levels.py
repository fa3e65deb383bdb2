"""How far a synthetic view may go from the thing itself: three committed levels of difficulty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Level:
    """Ranges that a view's parameters are drawn from, uniformly unless said otherwise.

    cover: area of the whole (unhidden, uncut) object over the picture's area; drawn log-uniformly.
    roll: rotation in the picture's plane, degrees, +-.      tilt: most turn out of the plane,
        degrees.
    stretch: most change of the aspect ratio, as a factor - 1.
    bend: 0 flat, towards 1 a half cylinder (share of the radius).
    warp: root mean square of a smooth displacement, as a share of the object's half side.
    cut: share of the object's extent that lies beyond the picture's border; a draw below 0 means
        uncut.
    hide: share of the object's area covered by occluders; a draw below 0 means none.
    clutter: number of other pieces lying behind the object (low, high, both included).
    gain: brightness factor.   gamma: exponent.   cast: most deviation of one channel's gain from 1.
    shade: most change of brightness across the picture, as a share.
    defocus: sigma of a Gaussian, px.   motion: length of a motion blur, px.   noise: sigma, grey
        levels.
    quality: JPEG quality, 1 to 100.
    """

    cover: Range
    roll: float
    tilt: float
    stretch: float
    bend: Range
    warp: Range
    cut: Range
    hide: Range
    clutter: tuple[int, int]
    gain: Range
    gamma: Range
    cast: float
    shade: float
    defocus: Range
    motion: Range
    noise: Range
    quality: tuple[int, int]


LEVELS: Mapping[str, Level] = {
    "mild": Level(
        cover=(0.35, 0.75),
        roll=10,
        tilt=20,
        stretch=0.1,
        bend=(0.0, 0.3),
        warp=(0.0, 0.02),
        cut=(-0.08, 0.08),
        hide=(0.0, 0.0),
        clutter=(0, 1),
        gain=(0.85, 1.15),
        gamma=(0.85, 1.2),
        cast=0.05,
        shade=0.2,
        defocus=(0.0, 0.8),
        motion=(0.0, 0.0),
        noise=(0.0, 3.0),
        quality=(80, 95),
    ),
    "medium": Level(
        cover=(0.16, 0.55),
        roll=25,
        tilt=40,
        stretch=0.2,
        bend=(0.0, 0.7),
        warp=(0.0, 0.05),
        cut=(-0.2, 0.2),
        hide=(-0.2, 0.2),
        clutter=(0, 3),
        gain=(0.65, 1.35),
        gamma=(0.7, 1.5),
        cast=0.12,
        shade=0.4,
        defocus=(0.0, 1.4),
        motion=(0.0, 4.0),
        noise=(0.0, 7.0),
        quality=(60, 92),
    ),
    "hard": Level(
        cover=(0.08, 0.32),
        roll=45,
        tilt=58,
        stretch=0.3,
        bend=(0.0, 0.9),
        warp=(0.02, 0.08),
        cut=(-0.35, 0.35),
        hide=(-0.1, 0.4),
        clutter=(1, 4),
        gain=(0.55, 1.45),
        gamma=(0.65, 1.6),
        cast=0.15,
        shade=0.5,
        defocus=(0.0, 1.7),
        motion=(0.0, 6.0),
        noise=(1.0, 10.0),
        quality=(45, 88),
    ),
}
