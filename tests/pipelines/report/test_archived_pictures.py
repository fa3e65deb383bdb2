"""Pictures of archives for people to look at: those that are at hand, whatever is wrong with the
others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.report import archived as module
from pipelines.report.archived import archived_pictures
from pipelines.report.whereabouts import Whereabouts
from pipelines.stores.store import Store
from tests.pipelines.extract.test_extract_edges import members, write_tar
from tests.support.watching import EXTRACTOR

IDS = ["s/a/000.jpg", "s/b/005.jpg"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Of two archives, which lie in the store's parent folder."""
    folder = tmp_path_factory.mktemp("archived")
    for first, name in ((0, "a"), (5, "b")):
        write_tar(folder / f"{name}.tar", members(first, 3))
    options = extract_options.Options(
        out=str(folder / "store"), images=str(folder / "*.tar"), source="s", extractor=EXTRACTOR
    )
    extract.run(options, RunSettings(workers=1))
    yield Store(options.out)
    pool.close_pool()


def shown(store: Store) -> list[str]:
    places = Whereabouts((), store.place.url)
    return [record_id for record_id, _ in archived_pictures(store, IDS, places)]


def test_what_is_not_read_takes_nothing_from_the_budget(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Path(store.place.root).parent / "a.tar"
    monkeypatch.setattr(module, "MOST_BYTES", archive.stat().st_size)
    assert shown(store) == IDS[:1]  # there is no room for the second
    moved = archive.rename(archive.with_name("elsewhere"))
    assert shown(store) == IDS[1:]
    moved.rename(archive)


def test_an_archive_that_cannot_be_read_ends_nothing(store: Store) -> None:
    archive = Path(store.place.root).parent / "a.tar"
    data = archive.read_bytes()
    archive.unlink()
    archive.mkdir()
    assert shown(store) == IDS[1:]
    archive.rmdir()
    archive.write_bytes(b"no tar at all" * 100)
    assert shown(store) == IDS[1:]
    archive.write_bytes(data)
    assert shown(store) == IDS


def test_globals_are_not_read_for_their_ids(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Store, "read_global")
    assert shown(store) == IDS
