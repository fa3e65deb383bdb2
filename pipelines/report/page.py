"""The report as one HTML page: a pure function from prepared data to text.

The page holds all it shows (images as data, style, script), opens from disk, and forbids itself any
request by its content policy. `templates/report.*` are its form; this file is what it may show, and
the chart's geometry.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
import PIL.Image

Label = Literal["positive", "negative", "junk", "unjudged"]


@dataclass(frozen=True)
class ReportImage:
    """An image of the page.

    Attributes:
        thumbnail_jpeg: the whole upright image, made small (200 pixels at its longest side are
            plenty).
        box_in_thumbnail: (x, y, w, h) in pixels of the thumbnail, drawn on it; None for the whole
            image.
        missing: the picture cannot be read, and the thumbnail stands for it.
    """

    record_id: str
    thumbnail_jpeg: bytes
    box_in_thumbnail: tuple[float, float, float, float] | None = None
    missing: bool = False


@dataclass(frozen=True)
class RankedImage:
    """A gallery image in one of the lists of a query.

    Attributes:
        label: by the ground truth, under the protocol that the lists are of.
        rank_before, rank_after: 0-based, as in the result files; None beyond what is kept.
        logit: raw, of the reranker; None where the image was not reranked.
        global_score: similarity of the global descriptors, in [-1, 1].
    """

    image: ReportImage
    label: Label
    rank_before: int | None
    rank_after: int | None
    logit: float | None
    global_score: float


@dataclass(frozen=True)
class QueryResult:
    """A query with its first images before and after reranking.

    Attributes:
        ap_before, ap_after: average precision in [0, 1] by protocol; NaN where the query has no
            positive.
        before, after: first images of the ranking, usually ten.
    """

    query: ReportImage
    ap_before: Mapping[str, float]
    ap_after: Mapping[str, float]
    before: Sequence[RankedImage]
    after: Sequence[RankedImage]


@dataclass(frozen=True)
class MetricsRow:
    """A line of the table.

    Attributes:
        name: of the ranking: "Global similarity", "Reranked", "Reranked, without label knowledge".
        values: by protocol, then by metric ("mAP", "mP@1", ...), in [0, 1]; what is absent or NaN
            is a dash.
    """

    name: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class FactGroup:
    """A titled list of facts about what made the results, as (name, value) texts."""

    title: str
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ReportData:
    """All that the page shows.

    Attributes:
        summary: a sentence or two under the title; may be empty.
        metrics: the first line is the ranking before, the second after; differences are against the
            first.
        queries: in the order of the ground truth.
        made_by: protocol, models, index, software, inputs: whatever a reader needs to judge or
            repeat it.
        counted: by protocol, how many of how many queries are in the means.
        lists_note: what ranking the lists of the queries are of, and what their labels mean.
    """

    title: str
    summary: str
    metrics: Sequence[MetricsRow]
    queries: Sequence[QueryResult]
    made_by: Sequence[FactGroup]
    counted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    lists_note: str = ""


def _change(result: QueryResult, protocol: str) -> float:
    """Average precision gained, NaN where it is undefined."""
    return result.ap_after.get(protocol, math.nan) - result.ap_before.get(protocol, math.nan)


def _chart(queries: Sequence[QueryResult], protocol: str) -> dict[str, Any]:
    """Bars of the change of each query, the greatest loss first; below 0.0005 it is none.

    A bar's x is in queries; y and heights are percent of the chart's height, from the top.
    """
    changes = [(_change(result, protocol), row) for row, result in enumerate(queries)]
    defined = sorted(pair for pair in changes if not math.isnan(pair[0]))
    least, most = (edge([0.0, *(change for change, _ in defined)]) for edge in (min, max))
    steps = (0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
    step = next((step for step in steps if (most - least) / step <= 5), steps[-1])
    low = math.floor(least / step + 1e-9) * step
    high = max(math.ceil(most / step - 1e-9) * step, low + step)

    def y_of(value: float) -> float:
        return round((high - value) / (high - low) * 100, 3)

    bars = []
    for x, (change, row) in enumerate(defined):
        kind = "same" if abs(change) < 0.0005 else "gain" if change > 0 else "loss"
        top, bottom = y_of(max(change, 0.0)), y_of(min(change, 0.0))
        height = round(max(bottom - top, 0.5), 3)  # no change is a thin line
        bars.append({"query": row, "x": x, "y": top, "height": height, "kind": kind})

    values = [low + step * tick for tick in range(round((high - low) / step) + 1)]
    kinds = Counter(bar["kind"] for bar in bars)
    return {
        "protocol": protocol,
        "bars": bars,
        "ticks": [(value, y_of(value)) for value in values],
        "better": kinds["gain"],
        "worse": kinds["loss"],
        "same": kinds["same"],
        "undefined": len(queries) - len(bars),
    }


class _Thumbnails:
    """Hands each distinct thumbnail to the page once; a repetition names the first one's id."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def place(self, image: ReportImage) -> dict[str, object]:
        """Pixel size, box in percent of it, and id and data; of a repetition `same` alone."""
        with PIL.Image.open(io.BytesIO(image.thumbnail_jpeg)) as opened:
            width, height = opened.size

        box = None
        if image.box_in_thumbnail is not None:
            x, y, w, h = image.box_in_thumbnail
            edges = x / width, y / height, w / width, h / height
            box = tuple(round(100 * edge, 2) for edge in edges)

        size = {"width": width, "height": height, "box": box}
        digest = hashlib.sha256(image.thumbnail_jpeg).digest()
        if digest in self._known:
            return {**size, "same": self._known[digest]}

        self._known[digest] = f"image-{len(self._known)}"
        data = base64.b64encode(image.thumbnail_jpeg).decode()
        return {**size, "id": self._known[digest], "data": data}


def _percent(value: float | None, digits: int = 1) -> str:
    """0.1234 -> "12.3"; a dash where there is no number."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _signed(value: float, digits: int = 1) -> str:
    """0.1234 -> "+12.3", with a true minus sign; "±0.0" where it rounds to nothing."""
    if math.isnan(value):
        return "–"
    text = f"{100 * value:.{digits}f}"
    if float(text) == 0:
        return "±" + text.lstrip("-")
    return "+" + text if value > 0 else "−" + text.lstrip("-")


def _short_name(record_id: str) -> str:
    """The file name of a record id without its box; ids are percent-encoded: `#` starts a box."""
    return record_id.rsplit("#", 1)[0].rsplit("/", 1)[-1] or record_id


def _in_order(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    """The keys of all mappings, each where it first comes."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def render_report(data: ReportData) -> str:
    """The page as text, to be written as UTF-8. The same data gives the same text.

    Raises:
        PIL.UnidentifiedImageError: a thumbnail is not an image.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "short_name": _short_name}
    protocols = _in_order([row.values for row in data.metrics])
    labels = {ranked.label for query in data.queries for ranked in (*query.before, *query.after)}
    charts = [
        _chart(data.queries, protocol) for protocol in _in_order([q.ap_after for q in data.queries])
    ]
    return environment.get_template("report.html.j2").render(
        data=data,
        protocols=protocols,
        metric_names=_in_order([values for row in data.metrics for values in row.values.values()]),
        charts=[chart for chart in charts if chart["bars"]],
        labels=labels,
        change=_change,
        place=_Thumbnails().place,
        nan=math.nan,
    )
