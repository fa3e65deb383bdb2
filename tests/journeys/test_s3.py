"""Places on a real S3 server, with connections that are cut in the middle of reads and writes."""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.place import open_place, read_url
from pipelines.storage.protocol import Place
from pipelines.storage.retries import Unreachable
from schemas.errors import UserError
from tests.support.s3_server import BUCKET, Cut, S3Server
from tests.support.watching import Running

Start = Callable[..., Running]
BIG = bytes(range(251)) * 2000  # 502 kB that repeat with no power of two


@pytest.fixture
def place(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A folder in the bucket; only the first layer below ours tries again, and once."""
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr("pipelines.storage.retries.FIRST_WAIT", 0.01)
    yield open_place(f"s3://{BUCKET}/{secrets.token_hex(4)}/folder")
    s3.proxy.cut()


def key(place: Place, name: str) -> str:
    return place.path(name).removeprefix(f"{BUCKET}/")


@pytest.mark.parametrize("after", [0, 100, 200_000])
def test_a_read_that_breaks_is_done_again(place: Place, s3: S3Server, after: int) -> None:
    place.write("a", BIG)
    place.write("b", b"b")
    s3.proxy.cut(Cut(b"GET /", "answer", after, times=3))
    assert place.read("a") == BIG
    assert s3.proxy.requests(b"GET /") == 4
    s3.proxy.cut(Cut(b"GET /", "answer", after, times=3))
    ranges = place.read_ranges(["a", "b", "a"], [3, 0, 100_000], [6, 1, 500_000])
    assert ranges == [BIG[3:6], b"b", BIG[100_000:500_000]]
    s3.proxy.cut(Cut(b"?list", "answer", min(after, 300), times=2), Cut(b"HEAD", "answer", 0))
    assert place.names("") == ["a", "b"] and place.sizes(["a", "c", "b"]) == [len(BIG), None, 1]
    assert place.exists("a") and not place.exists("c") and place.size("a") == len(BIG)


@pytest.mark.parametrize("after", [0, 1_000, 200_000])
def test_a_write_that_breaks_is_done_again(
    place: Place, s3: S3Server, after: int, tmp_path: Path
) -> None:
    s3.proxy.cut(Cut(b"PUT /", "request", after, times=3))
    place.write("a", BIG)
    assert s3.proxy.requests(b"PUT /") == 4
    assert s3.content(key(place, "a")) == BIG
    file = tmp_path / "file"
    file.write_bytes(BIG)
    s3.proxy.cut(Cut(b"PUT /", "request", after), Cut(b"PUT /", "answer"), Cut(b"HEAD", "answer"))
    place.put(str(file), "data/file")
    assert s3.content(key(place, "data/file")) == BIG and not file.exists()
    s3.proxy.cut(Cut(b"DELETE", "answer"), Cut(b"DELETE", "request"))
    place.remove("a")
    assert set(s3.objects(key(place, ""))) == {key(place, "data/file")}


def test_who_made_it_is_known_though_the_answer_was_lost(place: Place, s3: S3Server) -> None:
    s3.proxy.cut(Cut(b"PUT /", "answer"))
    assert place.create("done/a", b"ours")
    assert s3.proxy.requests(b"PUT /") == 2 and s3.content(key(place, "done/a")) == b"ours"
    s3.proxy.cut(Cut(b"PUT /", "request", 200))
    assert place.create("done/b", b"ours"), "the request was lost, not the answer"
    s3.client.put_object(Bucket=BUCKET, Key=key(place, "done/c"), Body=b"another's")
    for what in ("request", "answer"):
        s3.proxy.cut(Cut(b"PUT /", what))
        assert not place.create("done/c", b"ours")
    assert s3.content(key(place, "done/c")) == b"another's"
    s3.proxy.cut(Cut(b"PUT /", "answer"), Cut(b"GET /", "answer", 100))
    assert place.create("done/d", b"ours"), "the answer to the reading back was lost, too"


def test_an_upload_in_parts_is_whole_or_not_there(
    place: Place, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    megabytes = 2**20
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 * megabytes)
    file = tmp_path / "large"
    file.write_bytes(b"0123456789abcde" * megabytes)
    monkeypatch.setenv("RRT_STORAGE_TRIES", "2")
    s3.proxy.cut(Cut(b"partNumber=3", "request", megabytes, times=99))
    with pytest.raises(Unreachable, match=r"large cannot be written: it failed 2 times"):
        place.put(str(file), "large")
    assert file.exists() and not s3.objects(key(place, ""))
    assert not s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads"), (
        "what was begun is given up"
    )
    s3.proxy.cut(Cut(b"partNumber=3", "request", megabytes))
    content = file.read_bytes()
    place.put(str(file), "large")
    assert s3.content(key(place, "large")) == content


def test_a_busy_server_is_waited_for(place: Place, s3: S3Server) -> None:
    s3.proxy.cut(Cut(b"PUT /", "busy", times=3))
    place.write("a", b"a")
    s3.proxy.cut(Cut(b" /", "busy", times=4))
    assert place.read("a") == b"a"


def test_what_is_final_is_said_at_once(place: Place, s3: S3Server) -> None:
    s3.proxy.cut()
    with pytest.raises(FileNotFoundError):
        place.read("none")
    assert s3.proxy.requests(b"HEAD") == 1, "not there is an answer"
    assert place.names("none") == [] and not place.is_folder()
    nowhere = open_place("s3://no-such-bucket/folder")
    with pytest.raises(
        UserError, match=r"^s3://no-such-bucket/folder/a cannot be written: .*does not exist$"
    ):
        nowhere.write("a", b"a")
    with pytest.raises(UserError, match="cannot be made"):
        nowhere.create("a", b"a")


def test_a_place_that_never_answers_is_said_in_one_sentence(
    place: Place, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("a", b"a")
    monkeypatch.setenv("RRT_STORAGE_TRIES", "3")
    s3.proxy.cut(Cut(b" /", "request", times=99))
    with pytest.raises(
        UserError, match=r"/folder/a cannot be read: it failed 3 times in \d s, at last with: "
    ):
        place.read("a")
    with pytest.raises(UserError, match="it failed 3 times"):
        read_url(f"{place.url}/a")
    monkeypatch.setenv("RRT_STORAGE_TRIES", "")
    monkeypatch.setenv("RRT_STORAGE_SECONDS", "0")
    with pytest.raises(UserError, match="it failed 1 times"):
        place.names("")
    monkeypatch.setenv("RRT_STORAGE_SECONDS", "soon")
    with pytest.raises(UserError, match="RRT_STORAGE_SECONDS is 'soon'"):
        place.names("")


def test_images_that_are_too_large_are_not_read(place: Place) -> None:
    place.write("a", bytes(100))
    assert read_url(f"{place.url}/a", 100) == bytes(100)
    with pytest.raises(OSError, match="it has 100 bytes; at most 99 are read"):
        read_url(f"{place.url}/a", 99)


def contents(s3: S3Server, prefix: str) -> dict[str, Any]:
    """The content hash of each manifest below a prefix."""
    names = [name for name in s3.objects(prefix) if name.endswith("/manifest.json")]
    return {name[len(prefix) :]: json.loads(s3.content(name))["content"] for name in names}


def leftovers(s3: S3Server, prefix: str) -> list[str]:
    return [
        name for name in s3.objects(prefix) if re.search("/(attempts|errors|scratch)/|tmp$", name)
    ]


@pytest.fixture(scope="module")
def uploaded(s3_session: S3Server, photographs: Path) -> str:
    """The photographs in the bucket."""
    for file in photographs.iterdir():
        s3_session.client.put_object(
            Bucket=BUCKET, Key=f"data/photographs/{file.name}", Body=file.read_bytes()
        )
    return f"s3://{BUCKET}/data/photographs"


def test_disturbed_runs_on_s3_equal_a_local_run(
    s3: S3Server, uploaded: str, configuration: Path, start: Start, tmp_path: Path
) -> None:
    """Two workers, many requests and answers cut; kill -9 of the whole tree, then the server is out
    of reach.
    """
    command = ["run", "--config", configuration, "--workers", 2, "--set"]
    on_s3 = [*command, f"out=s3://{BUCKET}/all", "--set", f"images={uploaded}"]
    cuts = (
        Cut(b" /", "request", 50, times=999, every=47),
        Cut(b" /", "answer", 200, times=999, every=43),
        Cut(b"PUT /", "answer", times=999, every=19),
    )
    s3.proxy.cut(*cuts)
    running = start(*on_s3)
    running.until(functools.partial(s3.objects, "all/gallery/done/"), "a marker")
    running.kill_all()
    assert not s3.objects("all/gallery/manifest.json")
    running = start(*on_s3, RRT_STORAGE_SECONDS="2")
    running.until(functools.partial(s3.objects, "all/run/shortlist/plan/plan.json"), "the search")
    s3.proxy.cut(Cut(b" /", "request", times=9999))
    assert running.end() == 2, running.text
    assert "Traceback" not in running.text and "goes on from there" in running.text, running.text
    assert not running.orphans() and not s3.objects("all/run/report/manifest.json")
    s3.proxy.cut(*cuts)
    finished = {name: s3.modified(name) for name in s3.objects("all/gallery/")}
    local = start(*command, f"out={tmp_path}/all")
    running = start(*on_s3)
    assert running.end() == 0, running.text
    assert sum(cut.done for cut in s3.proxy.cuts) > 10
    s3.proxy.cut()
    assert "Traceback" not in running.text and "boto" not in running.text, running.text
    assert {name: s3.modified(name) for name in finished} == finished, "what was finished stays"
    assert local.end() == 0, local.text
    found = contents(s3, "all/")
    for name, content in found.items():
        if not name.startswith("run/report"):  # it names its places
            assert json.loads((tmp_path / "all" / name).read_bytes())["content"] == content, name
    assert len(found) == 11 and not leftovers(s3, "all/")
    again = start(*on_s3)
    assert again.end() == 0 and again.text.count("already made") == 11, again.text
