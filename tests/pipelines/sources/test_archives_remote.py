"""Archives behind http, with and without byte ranges, cut, changed and refused."""

from __future__ import annotations

import http.server
import random
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message

import fsspec
import pytest

from pipelines.sources.archives import ArchiveDamaged, archive_size, entries, find_archives
from pipelines.storage import blocks as archive_bytes
from pipelines.storage import retries as retrying
from schemas.errors import Unreachable, UserError
from tests.support.made_archives import packed
from tests.support.s3_server import BUCKET, Cut, S3Server

CHANCE = random.Random(9)
FILES = {
    f"jpg/{n:03}.jpg": CHANCE.randbytes(CHANCE.choice((100, 5_000, 40_000))) for n in range(30)
}
BLOCK = 50_000


@dataclass
class Site:
    """What the server has and how it behaves."""

    content: bytes = b""
    ranges: bool = True
    tells_size: bool = True
    length: str = ""  # what it calls the length, in place of the right one
    statuses: list[int] = field(
        default_factory=list
    )  # answers to the next requests; 200: as it should be
    cuts: list[int] = field(default_factory=list)  # the next bodies end after so many bytes
    tag: str = '"one"'
    encoding: str = ""
    asked: list[str] = field(default_factory=list)  # the Range of each request
    change_after: int = 0  # requests
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/archive"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server of one object."""
    monkeypatch.setattr(archive_bytes, "REMOTE_BLOCK", BLOCK)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrying, "LONGEST_WAIT", 0.01)
    here = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            here.asked.append(self.headers.get("Range", ""))
            status = here.statuses.pop(0) if here.statuses else 200
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if here.change_after and len(here.asked) > here.change_after:
                here.tag = '"two"'
            self.answer(here.content, self.headers)

        def answer(self, content: bytes, asked: Message) -> None:
            size, start = len(content), 0
            if here.ranges:
                first, _, last = asked["Range"].removeprefix("bytes=").partition("-")
                start = int(first)
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = content[start : int(last) + 1]
                self.send_response(206)
                self.send_header(
                    "Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}"
                )
            else:
                self.send_response(200)
            if here.tells_size or here.ranges:
                self.send_header("Content-Length", here.length or str(len(content)))
                if here.length:
                    self.send_header("Connection", "close")
            else:
                self.send_header("Connection", "close")
            if here.encoding:
                self.send_header("Content-Encoding", here.encoding)
            self.send_header("ETag", here.tag)
            self.end_headers()
            cut = here.cuts.pop(0) if here.cuts and len(content) > 1 else None
            try:
                self.wfile.write(content[:cut])
            except OSError:
                self.close_connection = True  # the reader went away
            if cut is not None:
                self.close_connection = True

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        here.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield here
        server.shutdown()


def found(url: str) -> list[tuple[str, bytes | None]]:
    """All entries."""
    return [(entry.name.decode(), entry.data) for entry in entries(url)]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("ranges", [True, False])
def test_by_http(site: Site, suffix: str, ranges: bool) -> None:
    site.content, site.ranges = packed(FILES, suffix), ranges
    url = f"{site.url}.{suffix}?a=b"
    assert find_archives(url) == [url]
    assert archive_size(url) == len(site.content)
    if suffix == "zip" and not ranges:
        with pytest.raises(UserError, match="no byte ranges"):
            found(url)
        return
    site.asked.clear()
    assert found(url) == list(FILES.items())
    assert len(site.asked) == 1 + (-(-len(site.content) // BLOCK) if ranges else 0) + (
        suffix == "zip"
    )


@pytest.mark.parametrize("suffix", ["tar.gz", "tar", "zip"])
def test_cut_connections_go_on_at_the_offset(site: Site, suffix: str) -> None:
    site.content, site.cuts = packed(FILES, suffix), [1, 20_000, 0, 0, 49_999, 7]
    site.statuses = [503, 200, 429, 500]
    assert found(f"{site.url}.{suffix}") == list(FILES.items())
    assert not site.cuts and not site.statuses
    starts = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in site.asked]
    assert any(start % BLOCK for start in starts), "the rest of a block, not the block again"


def test_a_stream_without_ranges_is_started_again(site: Site) -> None:
    site.content, site.ranges, site.cuts = (
        packed(FILES, "tar.gz"),
        False,
        [100_000, 130_000, 10, 131_000],
    )
    assert found(site.url + ".tar.gz") == list(FILES.items())
    assert not site.cuts and len(site.asked) == 5


def test_a_server_that_does_not_tell_the_size(site: Site) -> None:
    site.content, site.ranges, site.tells_size = packed(FILES, "tar.gz"), False, False
    assert archive_size(site.url + ".tar.gz") == 0
    assert found(site.url + ".tar.gz") == list(FILES.items())
    assert {entry.position for entry in entries(site.url + ".tar.gz")} >= {0.0}
    site.cuts = [100_000]
    with pytest.raises(ArchiveDamaged, match="fetch it again"):
        found(site.url + ".tar.gz")


@pytest.mark.parametrize("length", ["none", "-1", "1e3"])
def test_a_length_that_is_no_number_is_none(site: Site, length: str) -> None:
    site.content, site.ranges, site.length = packed(FILES, "tar.gz"), False, length
    assert archive_size(site.url + ".tar.gz") == 0
    assert found(site.url + ".tar.gz") == list(FILES.items())


def test_a_server_that_calls_the_compression_an_encoding(site: Site) -> None:
    site.content, site.encoding = packed(FILES, "tar.gz"), "gzip"
    assert found(site.url + ".tar.gz") == list(FILES.items())


@pytest.mark.parametrize("ranges", [True, False])
def test_an_object_that_changes_is_refused(site: Site, ranges: bool) -> None:
    site.content, site.ranges, site.change_after = packed(FILES, "tar.gz"), ranges, 2
    if not ranges:
        site.cuts, site.change_after = [100_000], 1
    with pytest.raises(UserError, match="changed while it was read"):
        found(site.url + ".tar.gz")


@pytest.mark.parametrize(
    ("status", "said"), [(404, "no such file"), (403, "403"), (401, "401"), (410, "no such")]
)
def test_what_the_server_refuses_is_a_sentence(site: Site, status: int, said: str) -> None:
    site.statuses = [status] * 2
    url = site.url + ".tar"
    for reading in (archive_size, found):
        with pytest.raises(UserError, match=said) as told:
            reading(url)  # type: ignore[operator]
        assert url in str(told.value)
    assert len(site.asked) == 2, "the answer is final"


def test_a_server_that_fails_for_good_is_unreachable(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retrying.TRIES_VARIABLE, "3")
    site.content, site.statuses = packed(FILES, "tar"), [200, 200, 503, 503, 503]
    read: list[bytes] = []
    with pytest.raises(Unreachable, match="failed 3 times"):
        read.extend(entry.name for entry in entries(site.url + ".tar"))
    assert read == [name.encode() for name in FILES][: len(read)]
    with pytest.raises(UserError, match="127.0.0.1:9"):
        archive_size("http://127.0.0.1:9/a.tar")


def test_unwanted_bytes_of_a_plain_tar_are_not_fetched(site: Site) -> None:
    site.content = packed({"a.jpg": b"a", "large.jpg": bytes(40 * BLOCK), "b.jpg": b"b"}, "tar")
    got = [
        (entry.name, entry.data)
        for entry in entries(site.url + ".tar", lambda name: name != b"large.jpg")
    ]
    assert got == [(b"a.jpg", b"a"), (b"large.jpg", None), (b"b.jpg", b"b")]
    assert len(site.asked) < 8


def test_stopping_early_fetches_no_more(site: Site) -> None:
    site.content = packed({f"{n}.jpg": bytes(BLOCK) for n in range(40)}, "tar")
    stream = entries(site.url + ".tar")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(site.asked) < 6


def test_an_object_that_changes_in_fsspecs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_bytes, "REMOTE_BLOCK", BLOCK)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/changing/a.tar", packed(FILES, "tar"))
    stream = entries("memory://changing/a.tar")
    next(stream)
    fs.pipe_file("/changing/a.tar", packed(FILES, "tar"))
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream)


def test_on_s3_with_cut_connections(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(archive_bytes, "REMOTE_BLOCK", BLOCK)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    for suffix in ("tar.gz", "zip"):
        key = f"archives/s{len(suffix)}.{suffix}"
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=packed(FILES, suffix))
        s3.proxy.cut(
            Cut(b"GET /", "answer", 10_000, times=4, every=2),
            Cut(b"HEAD", "answer", 0, times=2, every=3),
        )
        assert found(f"s3://{BUCKET}/{key}") == list(FILES.items())
        assert [cut.done for cut in s3.proxy.cuts] == [4, 2]
        assert find_archives(f"s3://{BUCKET}/archives/s*.{suffix}") == [f"s3://{BUCKET}/{key}"]
    s3.proxy.cut()
