"""The report page: what it says, and that a browser shows it without a word of complaint or a
request.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import re
import select
import shutil
import subprocess
import sys
import time

import PIL.Image
import pytest

from pipelines.report.page import (
    FactGroup,
    MetricsRow,
    QueryResult,
    RankedImage,
    ReportData,
    ReportImage,
    render_report,
)

HOSTILE = 'src/<img src=x onerror="boom()">\'"&\n</script><!--{{ 7*7 }} 名前é.jpg#1,2,3,4'
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def jpeg(color, size=(60, 40)):
    data = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(data, "JPEG")
    return data.getvalue()


def image(record_id, color, **options):
    return ReportImage(record_id, jpeg(color, options.pop("size", (60, 40))), **options)


def ranked(record_id, color, label="negative", before=0, after=0, logit=1.5):
    return RankedImage(image(record_id, color), label, before, after, logit, 0.75)


def query(name, before, after, images=None):
    images = images or [
        ranked("g/a.jpg", "red", "positive", before=4, after=0),
        ranked("g/b.jpg", "blue", "negative", before=0, after=1),
        ranked("g/c.jpg", "gray", "junk", before=2, after=2, logit=None),
        ranked("g/d.jpg", "pink", "unjudged", before=3, after=None),
        ranked("g/e.jpg", "tan", "unjudged", before=None, after=4),
    ]
    shown = image(name, "green", size=(40, 60), box_in_thumbnail=(4, 6, 20, 30))
    before, after = ({"medium": ap, "hard": ap / 2} for ap in (before, after))
    return QueryResult(shown, before, after, images, images)


def report(**changes):
    values = {"medium": {"mAP": 0.5, "mP@1": 1.0}, "hard": {"mAP": 0.25, "mP@1": math.nan}}
    better = {"medium": {"mAP": 0.625, "mP@1": 1.0}, "hard": {"mAP": 0.2, "mP@1": 0.5}}
    data = {
        "title": "A title",
        "summary": "",
        "metrics": [MetricsRow("Global similarity", values), MetricsRow("Reranked", better)],
        "queries": [
            query("q/up.jpg", 0.2, 0.8),
            query("q/down.jpg", 0.5, 0.25),
            query("q/same.jpg", 0.5, 0.5),
        ],
        "made_by": [FactGroup("Protocol", [("Shortlist", "100")])],
        "counted": {"medium": (70, 70), "hard": (68, 70)},
    }
    return ReportData(**(data | changes))


# What it says


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_table_with_differences():
    text = text_of(render_report(report()))
    assert "Global similarity 50.00 100.00 25.00 –" in text
    assert "Reranked 62.50 +12.50 100.00 ±0.00 20.00 −5.00 50.00" in text
    assert "68 of 70 queries" in text
    assert "mAP Medium 62.5 +12.5 from 50.0" in text


def test_each_bar_leads_to_its_query_in_the_order_of_change():
    page = render_report(report())
    chart = page.split('data-protocol="medium"')[1].split("</svg>")[0]
    assert re.findall(r'href="#query-(\d)"', chart) == ["2", "3", "1"]
    assert re.findall(r'rect class="(gain|loss|same)"', chart) == ["loss", "same", "gain"]
    assert "up.jpg: 20.0 → 80.0 (+60.0)" in chart
    heights = [float(height) for height in re.findall(r'width=".8" height="([\d.]+)"', chart)]
    assert heights[2] / heights[0] == pytest.approx(0.6 / 0.25, rel=1e-3)
    assert "1 better, 1 worse, 1 unchanged" in page


def test_movement_and_labels():
    text = text_of(render_report(report(queries=[query("q/1.jpg", 0.2, 0.8)])))
    assert "✓ 5 → 1 1.50 · 0.750" in text  # before
    assert "✓ 1 ▲ 4" in text  # after
    assert "✕ 2 ▼ 1" in text
    assert "∅ 3 = – · 0.750" in text
    assert "→ out" in text
    assert "new" in text
    assert 'alt="Rank 1, right: g/a.jpg"' in render_report(report())


def test_queries_without_positives_are_not_drawn():
    queries = [query("q/1.jpg", 0.2, 0.8), query("q/2.jpg", math.nan, math.nan)]
    page = render_report(report(queries=queries))
    assert "1 without positives not drawn" in text_of(page)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)


def test_the_legend_names_the_frames_that_occur():
    page = render_report(
        report(queries=[query("q/1.jpg", 0.2, 0.8, [ranked("g/a.jpg", "red", "positive")])])
    )
    legend = text_of(page.split('class="legend"')[1].split("</ul>")[0])
    assert "right" in legend
    assert "junk" not in legend


def test_equal_thumbnails_are_in_the_page_once():
    page = render_report(report())
    assert page.count("data:image/jpeg;base64,") == 6  # five of the gallery, one of the queries
    assert len(set(re.findall(r'data-same="(image-\d)"', page))) == 6


def test_boxes_are_in_percent_of_the_thumbnail():
    assert 'style="left:10.0%;top:10.0%;width:50.0%;height:50.0%"' in render_report(report())


def test_names_are_only_text():
    hostile = [ranked(HOSTILE, "red", before=0, after=0)]
    page = render_report(
        report(
            title=HOSTILE,
            summary=HOSTILE,
            queries=[query(HOSTILE, 0.1, 0.2, hostile)],
            metrics=[MetricsRow(HOSTILE, {HOSTILE: {HOSTILE: 0.5}})],
            made_by=[FactGroup(HOSTILE, [(HOSTILE, HOSTILE)])],
            lists_note=HOSTILE,
        )
    )
    assert "<img src=x" not in page
    assert page.count("</script>") == 1
    assert "<!--" not in page
    assert "{{ 7*7 }} 名前é.jpg" in page
    assert 'onerror="' not in page


def test_the_same_data_gives_the_same_text():
    assert render_report(report()) == render_report(report())


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": []},
        {"metrics": []},
        {"metrics": [MetricsRow("Global similarity", {"medium": {"mAP": math.nan}})]},
        {"made_by": [], "counted": {}},
        {"queries": [query("q/1.jpg", 0.2, 0.8)]},
        {"queries": [query("q/1.jpg", 0.5, 0.5)]},
        {"queries": [query("q/1.jpg", 0.0, 1.0), query("q/2.jpg", 1.0, 0.0)]},
        {"queries": [QueryResult(image("q/1.jpg", "red"), {}, {}, [], [])]},
    ],
)
def test_what_is_missing_is_left_out(changes):
    page = render_report(report(**changes))
    assert page.startswith("<!DOCTYPE html>")
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    for target in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{target}"' in page


# What a browser makes of it

# Chromium reads its commands from descriptor 3 and answers on 4.
LAUNCH = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(end), fcntl.F_DUPFD_CLOEXEC, 10) for end in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Headless Chromium, driven over a pipe: the DevTools protocol as JSON between zero bytes."""

    def __init__(self, profile):
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        arguments = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        )
        arguments += (
            "--disable-background-networking --disable-component-update --remote-debugging-pipe "
        )
        arguments += "--hide-scrollbars"
        browser = [BROWSER, *arguments.split(), f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(commands), str(answers), *browser],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._numbers, self._buffer, self._session = itertools.count(1), b"", {}
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _receive(self):
        deadline = time.monotonic() + 60
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise EOFError("the browser has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path):
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self):
        """Console messages, exceptions, and requests for anything but the file and its own data."""
        found = []
        for event in self.events:
            parameters = event.get("params", {})
            if event["method"] in (
                "Runtime.exceptionThrown",
                "Runtime.consoleAPICalled",
                "Log.entryAdded",
            ):
                found.append(parameters)
            if event["method"] == "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(url)
        return found

    def close(self):
        self._session = {}
        with contextlib.suppress(EOFError, OSError, TimeoutError):
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        os.close(self._write)
        os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    def open_page(data):
        path = tmp_path / "a report ü.html"
        path.write_text(render_report(data), encoding="utf-8")
        browser.open(path)
        return browser

    return open_page


IMAGES = "[...document.images].map(i => i.naturalWidth)"


@pytest.mark.chromium
def test_images_load_without_complaint_or_request(opened):
    page = opened(
        report(queries=[query(HOSTILE, 0.2, 0.8), query("q/b.jpg", 0.9, 0.1)], title=HOSTILE)
    )
    widths = page.evaluate(
        f"Promise.all([...document.images].map(i => i.decode())).then(() => {IMAGES})"
    )
    assert len(widths) == 22
    assert min(widths) > 0
    assert page.evaluate("[...document.images].every(i => i.alt.length > 0)")
    assert page.evaluate("document.title").replace("\n", " ").startswith("src/<img src=x")
    assert page.complaints() == []


@pytest.mark.chromium
def test_the_check_would_see_a_complaint(opened, tmp_path):
    page = opened(report())
    broken = tmp_path / "broken.html"
    broken.write_text("<script>nothing()</script><img src='http://127.0.0.1:9/x.png'>")
    page.open(broken)
    complaints = page.complaints()
    assert any("exceptionDetails" in complaint for complaint in complaints)
    assert "http://127.0.0.1:9/x.png" in complaints


@pytest.mark.chromium
def test_order_filter_and_protocol(opened):
    queries = [
        query("q/b.jpg", 0.2, 0.3),
        query("q/a.jpg", 0.9, 0.1),
        query("q/c.jpg", math.nan, math.nan),
    ]
    page = opened(report(queries=queries))
    names = (
        "[...document.querySelectorAll('article:not([hidden])')].map(a => a.dataset.name).join()"
    )

    def order(value):
        page.evaluate(f"order.value = '{value}'; order.dispatchEvent(new Event('change'))")
        return page.evaluate(names)

    assert page.evaluate(names) == "q/b.jpg,q/a.jpg,q/c.jpg"
    assert order("loss") == "q/a.jpg,q/b.jpg,q/c.jpg"
    assert order("gain") == "q/b.jpg,q/a.jpg,q/c.jpg"
    assert order("worst") == "q/a.jpg,q/b.jpg,q/c.jpg"
    assert order("best") == "q/b.jpg,q/a.jpg,q/c.jpg"
    assert order("name") == "q/a.jpg,q/b.jpg,q/c.jpg"

    shown = (
        "[...document.querySelectorAll('.chart:not([hidden])')].map(c => c.dataset.protocol).join()"
    )
    assert page.evaluate(shown) == "medium"
    page.evaluate("document.querySelector('input[value=hard]').click()")
    assert page.evaluate(shown) == "hard"

    page.evaluate("filter.value = 'A.'; filter.dispatchEvent(new Event('input'))")
    assert page.evaluate(names) == "q/a.jpg"
    assert page.evaluate("document.getElementById('shown').value") == "1 of 3"
    # A bar leads to its query though it was filtered away.
    bar = "document.querySelector('.chart:not([hidden]) a[href=\"#query-1\"]')"
    page.evaluate(
        f"{bar}.dispatchEvent(new MouseEvent('click', {{bubbles: true, cancelable: true}}))"
    )
    assert page.evaluate("location.hash") == "#query-1"
    assert page.evaluate(names).count("jpg") == 3
    assert page.complaints() == []


@pytest.mark.chromium
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_nothing_overflows_the_window(opened, width):
    page = opened(report(made_by=[FactGroup("Hashes", [("Weights", "f" * 64)])], title="x" * 200))
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.chromium
def test_dark_where_the_system_is_dark(opened):
    page = opened(report())
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(color)
    page.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    dark = page.evaluate(color)
    page.call("Emulation.setEmulatedMedia", features=[])
    assert light == "rgb(255, 255, 255)"
    assert dark != light
