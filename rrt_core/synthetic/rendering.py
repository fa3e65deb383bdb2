"""Synthetic views: a flat region of a photograph, as a camera might see the thing again.

    region (instances.py) -> placed in space (placement.py) -> in front of another photograph, among
    clutter, cut by the picture's border, half hidden -> light -> blur -> noise -> JPEG

Arrays in, arrays out; NumPy and OpenCV only. A view depends only on its arguments and its
generator, so views can be rendered in any order and in any process (`view_rng`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from rrt_core.synthetic.instances import SHAPES, Box, Pixels, Region, outline
from rrt_core.synthetic.levels import LEVELS, Level
from rrt_core.synthetic.placement import Floats, place

__all__ = ["LEVELS", "Level", "Region", "RenderedView", "render_clutter", "render_view", "view_rng"]


@dataclass(frozen=True)
class RenderedView:
    """One picture of an instance.

    Attributes:
        pixels: uint8 [H, W, 3], RGB, not yet compressed.
        box: (x, y, w, h), whole pixels, of what can be seen of the object; (0, 0, 0, 0) if nothing
            can.
        visible: share of the object's area neither cut nor hidden, 0 to 1.
        cover: area that can be seen over the picture's area, 0 to 1.
        quality: JPEG quality that goes with the view, 1 to 100.
    """

    pixels: Pixels
    box: Box
    visible: float
    cover: float
    quality: int

    def jpeg(self) -> bytes:
        """The picture as a JPEG file of the view's quality; the same bytes on every call."""
        options = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR), options)
        return bytes(data.tobytes())

    def compressed(self) -> Pixels:
        """The picture, uint8 [H, W, 3], RGB, as it comes out of its JPEG file.

        This is what to train a model on.
        """
        decoded = cv2.imdecode(np.frombuffer(self.jpeg(), np.uint8), cv2.IMREAD_COLOR)
        return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def view_rng(seed: int, instance: int, view: int) -> np.random.Generator:
    """The generator of view `view` of instance `instance` (all >= 0).

    It is independent of any other view's.
    """
    return np.random.default_rng((seed, instance, view))


def render_view(
    region: Region,
    background: Pixels,
    rng: np.random.Generator,
    level: str | Level,
    *,
    size: int = 360,
    clutter: Sequence[Pixels] = (),
) -> RenderedView:
    """One view of `region` in front of `background`.

    Args:
        region: what the view shows.
        background: uint8 [h, w, 3], RGB, at least 16 px a side; a random crop of it fills the
            picture.
        rng: decides all of the view (see `view_rng`).
        level: a name of LEVELS or a Level of your own.
        size: longest side of the picture, px, at least 64; the other is 0.7 to 1 of it.
        clutter: photographs uint8 [h, w, 3] that the pieces behind and before the object are cut
            from; the background where there are none.

    Raises:
        ValueError: the level is unknown.
    """
    level = _level(level)
    height, width = _picture_shape(size, rng)
    sources = list(clutter) or [background]
    canvas = _backdrop(background, height, width, rng)
    for _ in range(int(rng.integers(level.clutter[0], level.clutter[1] + 1))):
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        _paste(canvas, _pick(sources, rng), centre, rng.uniform(0.15, 0.4) * size, rng)

    flow, sampled = place(region, height, width, level, rng)
    alpha = np.asarray(
        cv2.remap(
            region.mask,
            flow[..., 0],
            flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        ),
        np.uint8,
    )
    whole = max(sampled, float(np.count_nonzero(alpha > 127)))
    x, y, w, h = cv2.boundingRect(alpha)

    if w and h:
        window = (slice(y, y + h), slice(x, x + w))
        texture = _fit_resolution(region, flow[window])
        seen = cv2.remap(
            texture,
            flow[window][..., 0],
            flow[window][..., 1],
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        # the object has light of its own: it does not stand in the background's photograph
        lit = _relight(np.asarray(seen, np.uint8), level, rng, strength=0.5)
        canvas[window] = _blend(canvas[window], lit, alpha[window])

    shown = (alpha > 127).astype(np.uint8)
    _hide(canvas, shown, whole, sources, rng.uniform(*level.hide), rng)

    canvas = _relight(canvas, level, rng, strength=1.0)
    canvas = _blur(canvas, level, rng)
    canvas = _add_noise(canvas, rng.uniform(*level.noise), rng)
    quality = int(rng.integers(level.quality[0], level.quality[1] + 1))
    area = float(np.count_nonzero(shown))
    x, y, w, h = cv2.boundingRect(shown)

    return RenderedView(
        canvas,
        (int(x), int(y), int(w), int(h)),
        area / whole if whole else 0.0,
        area / (height * width),
        quality,
    )


def render_clutter(
    background: Pixels,
    rng: np.random.Generator,
    level: str | Level,
    *,
    size: int = 360,
    clutter: Sequence[Pixels] = (),
) -> RenderedView:
    """A picture of the same make without any instance: background and clutter only.

    Its box is (0, 0, 0, 0).
    """
    level = _level(level)
    height, width = _picture_shape(size, rng)
    canvas = _backdrop(background, height, width, rng)

    for _ in range(int(rng.integers(1, level.clutter[1] + 3))):
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        _paste(
            canvas,
            _pick(list(clutter) or [background], rng),
            centre,
            rng.uniform(0.2, 0.6) * size,
            rng,
        )

    canvas = _add_noise(
        _blur(_relight(canvas, level, rng, strength=1.0), level, rng),
        rng.uniform(*level.noise),
        rng,
    )
    return RenderedView(
        canvas, (0, 0, 0, 0), 0.0, 0.0, int(rng.integers(level.quality[0], level.quality[1] + 1))
    )


def _level(level: str | Level) -> Level:
    if isinstance(level, str) and level not in LEVELS:
        raise ValueError(f"level is one of {sorted(LEVELS)} or a Level, not {level!r}")
    return LEVELS[level] if isinstance(level, str) else level


def _picture_shape(size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width: the longest side is `size`, the other 0.7 to 1 of it, upright or lying."""
    other = round(size * rng.uniform(0.7, 1.0))
    return (size, other) if rng.uniform() < 0.4 else (other, size)


def _fit_resolution(region: Region, flow: Floats) -> Pixels:
    """The region's pixels, blurred where the view is smaller (against aliasing).

    They keep their own size.
    """
    coarse = flow[::4, ::4]
    inside = (
        (coarse[..., 0] >= 0)
        & (coarse[..., 0] < region.mask.shape[1])
        & (coarse[..., 1] >= 0)
        & (coarse[..., 1] < region.mask.shape[0])
    )
    steps = np.diff(coarse, axis=1)[inside[:, 1:] & inside[:, :-1]]
    if not len(steps):
        return region.pixels
    # region pixels a picture pixel
    shrink = float(np.median(np.hypot(steps[:, 0], steps[:, 1]))) / 4
    if shrink <= 1.2:
        return region.pixels
    return np.asarray(
        cv2.GaussianBlur(region.pixels, (0, 0), 0.45 * np.sqrt(shrink**2 - 1)), np.uint8
    )


# ---------------------------------------------------------------------------- layers of the picture


def _pick(photographs: Sequence[Pixels], rng: np.random.Generator) -> Pixels:
    return photographs[int(rng.integers(len(photographs)))]


def _crop(photo: Pixels, aspect: float, share: float, rng: np.random.Generator) -> Pixels:
    """A random crop of width / height = aspect, `share` of the largest such, mirrored or not."""
    height, width = photo.shape[:2]
    h = max(4, min(height, round(share * min(height, width / aspect))))
    w = max(4, min(width, round(h * aspect)))
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    piece = photo[y : y + h, x : x + w]
    return piece[:, ::-1] if rng.uniform() < 0.5 else piece


def _backdrop(photo: Pixels, height: int, width: int, rng: np.random.Generator) -> Pixels:
    piece = _crop(photo, width / height, rng.uniform(0.55, 1.0), rng)
    mode = cv2.INTER_AREA if piece.shape[0] > height else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(piece, (width, height), interpolation=mode), np.uint8)


def _blend(below: Pixels, above: Pixels, alpha: Pixels) -> Pixels:
    """`above` over `below`, both uint8 [H, W, 3], by alpha uint8 [H, W]."""
    weight = alpha.astype(np.float32)[..., None] * np.float32(1 / 255)
    mixed = below + (above.astype(np.float32) - below) * weight
    return np.asarray(mixed + 0.5, np.uint8)


def _paste(
    canvas: Pixels,
    photo: Pixels,
    centre: tuple[float, float],
    side: float,
    rng: np.random.Generator,
) -> tuple[slice, slice, Pixels] | None:
    """Puts a piece of `photo`, about `side` px wide, into the canvas.

    Gives its place and mask if it lies inside.
    """
    aspect = float(np.exp(rng.uniform(-0.6, 0.6)))
    w, h = max(4, round(side * np.sqrt(aspect))), max(4, round(side / np.sqrt(aspect)))
    piece = _crop(photo, w / h, rng.uniform(0.25, 0.7), rng)
    shape = str(rng.choice(SHAPES))
    mask = outline(shape, h, w, rng)
    x, y = round(centre[0] - w / 2), round(centre[1] - h / 2)
    left, top = max(0, x), max(0, y)
    right, bottom = min(canvas.shape[1], x + w), min(canvas.shape[0], y + h)
    if right <= left or bottom <= top:
        return None
    place = (slice(top, bottom), slice(left, right))
    inner = (slice(top - y, bottom - y), slice(left - x, right - x))
    pasted = np.asarray(cv2.resize(piece, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    canvas[place] = _blend(canvas[place], pasted[inner], mask[inner])
    return (*place, mask[inner])


def _hide(
    canvas: Pixels,
    shown: Pixels,
    whole: float,
    sources: Sequence[Pixels],
    share: float,
    rng: np.random.Generator,
) -> None:
    """Covers a share of the object's `whole` area with pieces of photographs.

    Clears `shown` where they lie.
    """
    if share < 0.02:
        return
    target = np.count_nonzero(shown) - share * whole
    for _ in range(8):
        left = np.count_nonzero(shown) - max(target, 0.0)
        if left < 0.02 * whole:
            return
        points = np.flatnonzero(shown)
        y, x = divmod(int(points[int(rng.integers(len(points)))]), shown.shape[1])
        side = float(np.sqrt(left * rng.uniform(0.6, 1.0)))
        covered = _paste(canvas, _pick(sources, rng), (float(x), float(y)), side, rng)
        if covered is not None:
            rows, columns, mask = covered
            shown[rows, columns][mask > 127] = 0


# --------------------------------------------------------------------------------- light and camera


def _relight(image: Pixels, level: Level, rng: np.random.Generator, strength: float) -> Pixels:
    """Gain, gamma and colour cast by a table, then a shading gradient.

    `strength` scales them all.
    """
    gain = float(np.exp(rng.uniform(np.log(level.gain[0]), np.log(level.gain[1])) * strength))
    gamma = float(np.exp(rng.uniform(np.log(level.gamma[0]), np.log(level.gamma[1])) * strength))
    cast = 1 + rng.uniform(-level.cast, level.cast, 3) * strength
    steps = np.linspace(0, 1, 256)[:, None] ** gamma * (255 * gain * cast)
    table = np.clip(np.round(steps), 0, 255).astype(np.uint8).reshape(1, 256, 3)
    lit = cv2.LUT(image, table)
    shade, angle = rng.uniform(0, level.shade) * strength, rng.uniform(0, 2 * np.pi)
    if shade < 0.03:
        return np.asarray(lit, np.uint8)
    height, width = image.shape[:2]
    ramp = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(
        np.cos(angle)
    ) + np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    factor = 1 + np.float32(2 * shade) * ramp * np.float32(0.7)
    return np.asarray(np.clip(lit * factor[..., None] + 0.5, 0, 255), np.uint8)


def _blur(image: Pixels, level: Level, rng: np.random.Generator) -> Pixels:
    """Defocus (Gaussian), then motion along a random direction."""
    sigma, length, angle = (
        rng.uniform(*level.defocus),
        rng.uniform(*level.motion),
        rng.uniform(0, np.pi),
    )
    if sigma > 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if length > 1.5:
        side = 2 * int(np.ceil(length / 2)) + 1
        kernel = np.zeros((side, side), np.float32)
        for step in np.linspace(-length / 2, length / 2, 4 * side):
            kernel[
                round(side // 2 + step * np.sin(angle)), round(side // 2 + step * np.cos(angle))
            ] += 1
        image = np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)
    return image


def _add_noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of `sigma` grey levels, the same in all channels.

    This is nearly as after demosaicing.
    """
    if sigma < 0.5:
        return image
    noise = rng.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(sigma)
    return np.clip(image + noise[..., None] + 0.5, 0, 255).astype(np.uint8)
