"""Where an instance stands in a picture: a plane turned in space, bent and warped."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from rrt_core.synthetic.instances import Region
from rrt_core.synthetic.levels import Level

Floats = NDArray[np.float32]

GRID = (
    8  # pixels between the points where the warp is computed exactly; it is interpolated in between
)


def place(
    region: Region, height: int, width: int, level: Level, rng: np.random.Generator
) -> tuple[Floats, float]:
    """Where each pixel of the picture looks into the region.

    Returns float32 [height, width, 2], x and y in the region's pixels (far outside where the object
    is not), and the area in px that the whole object would cover were the picture endless.
    """
    region_height, region_width = region.mask.shape
    aspect = np.sqrt(region_width / region_height) * (
        1 + rng.uniform(-level.stretch, level.stretch)
    )
    half = np.array([aspect, 1 / aspect])
    corners = _project(half, level, rng)
    area = abs(float(cv2.contourArea(corners.astype(np.float32)))) * float(
        np.mean(region.mask > 127)
    )
    cover = float(np.exp(rng.uniform(np.log(level.cover[0]), np.log(level.cover[1]))))
    corners = corners * np.sqrt(cover * height * width / area)
    corners = corners + _position(corners, height, width, rng.uniform(*level.cut), rng)

    # the region's plane is u, v in -1..1; the inverse homography leads from the picture to it
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    to_plane = cv2.getPerspectiveTransform(corners.astype(np.float32), square)
    # this margin holds nearly all of any object that is cut
    pad = GRID * (max(height, width) // (2 * GRID))
    ys = np.arange(-pad, height + pad + GRID, GRID) + (GRID - 1) / 2
    xs = np.arange(-pad, width + pad + GRID, GRID) + (GRID - 1) / 2
    grid = np.stack([*np.meshgrid(xs, ys), np.ones((len(ys), len(xs)))], -1)
    plane = grid @ to_plane.T
    centre = np.array([*corners.mean(0), 1.0]) @ to_plane.T
    depth = plane[..., 2] * np.sign(centre[2])
    behind = depth < 0.05 * abs(centre[2])  # beyond the plane's horizon
    uv = plane[..., :2] / np.where(behind, 1.0, plane[..., 2])[..., None]
    uv = np.clip(np.where(behind[..., None], 9.0, uv), -9, 9)
    uv = _bend(uv, level, rng)
    uv = uv + _displacement(uv, rng.uniform(*level.warp), rng)

    scale = np.array([region_width / 2, region_height / 2])
    coarse = ((uv + 1) * scale - 0.5).astype(np.float32)
    sampled = cv2.remap(
        region.mask,
        coarse[..., 0],
        coarse[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    whole = float(np.mean(sampled > 127)) * sampled.size * GRID * GRID

    # cut the picture with one cell of margin out of the coarse field, then refine: borders stay
    # exact
    first = pad // GRID - 1
    rows, columns = height // GRID + 3, width // GRID + 3
    fine = cv2.resize(
        coarse[first : first + rows, first : first + columns],
        (columns * GRID, rows * GRID),
        interpolation=cv2.INTER_LINEAR,
    )
    return np.ascontiguousarray(fine[GRID : GRID + height, GRID : GRID + width]), whole


def _project(
    half: NDArray[np.float64], level: Level, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Corners float64 [4, 2] of a rectangle turned in space, as a camera sees it.

    `half` are its half sides.
    """
    roll = np.deg2rad(rng.uniform(-level.roll, level.roll))
    # the square root favours the level's far end
    tilt = np.deg2rad(level.tilt * np.sqrt(rng.uniform()))
    towards = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(3.0, 7.0)  # in half sides: near cameras converge lines strongly
    points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    points = points @ turn.T
    axis = np.array([np.cos(towards), np.sin(towards)])  # the picture's direction that leans away
    along = points @ axis
    flat = points + np.outer(along * (np.cos(tilt) - 1), axis)
    return np.asarray(flat * (distance / (distance + along * np.sin(tilt)))[:, None])


def _position(
    corners: NDArray[np.float64], height: int, width: int, cut: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Shift (x, y) that puts the object into the picture.

    A share `cut` of its extent lies beyond one border.
    """
    low, high = corners.min(0), corners.max(0)
    extent, picture = high - low, np.array([width, height], np.float64)
    room = picture - extent
    # inside where there is room; an object wider than the picture may slide by a quarter of what is
    # too much
    shift = np.where(room > 0, rng.uniform(size=2) * room, room * rng.uniform(0.25, 0.75, 2))
    side = int(rng.integers(4))
    if cut > 0:
        axis = side % 2
        if side < 2:
            shift[axis] = -cut * extent[axis]
        else:
            shift[axis] = picture[axis] - (1 - cut) * extent[axis]
    return np.asarray(shift - low)


def _bend(uv: NDArray[np.float64], level: Level, rng: np.random.Generator) -> NDArray[np.float64]:
    """The plane rolled onto a cylinder of share `bend`, about an upright or a lying axis."""
    bend, axis = rng.uniform(*level.bend), int(rng.integers(2))
    if bend < 0.05:
        return uv
    out = uv.copy()
    inside = np.abs(uv[..., axis]) <= 1
    # beyond the object's edge the cylinder turns away: keep the plane's own coordinate there
    out[..., axis] = np.where(
        inside, np.arcsin(bend * np.clip(uv[..., axis], -1, 1)) / np.arcsin(bend), uv[..., axis]
    )
    other = 1 - axis
    # the middle is nearer than the edges, and so larger: lines across the axis curve
    sag = 0.12 * bend * float(rng.choice((-1.0, 1.0)))
    out[..., other] = out[..., other] + sag * (1 - np.minimum(uv[..., axis] ** 2, 1.0))
    return out


def _displacement(
    uv: NDArray[np.float64], rms: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A smooth displacement [..., 2] of about `rms`, in the units of the plane.

    It is the sum of three waves an axis.
    """
    frequency = rng.uniform(0.6, 3.0, (3, 2)) * rng.choice((-1.0, 1.0), (3, 2))
    phase = rng.uniform(0, 2 * np.pi, (2, 3))
    waves = np.einsum("...d,wd->...w", uv, frequency)[..., None, :] + phase
    return np.asarray(np.sin(waves).sum(-1) * (rms * np.sqrt(2 / 3)))
