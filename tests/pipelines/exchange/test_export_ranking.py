"""export --format: a run's ranking as the file of a result format, in the ranking's order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.exchange import export
from pipelines.options import build
from pipelines.results.scores import read_ranking
from pipelines.run.config import read_config
from pipelines.run.stage import run_config
from schemas.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, configuration: Path) -> Path:
    """A run over all stages, and one of the same name without a ranking beside it."""
    root = tmp_path_factory.mktemp("ranked")
    config = read_config(str(configuration), {"out": str(root), "search.queries_per_block": 3})
    run_config(config, "test", RunSettings(workers=2))
    return root / "run"


def exported(run: Path, out: Path, overwrite: bool = False, **more: Any) -> dict[str, Any]:
    given = {"store": str(run), "out": str(out), "format": "trec", **more}
    return export.run(build(export.Options, given, "export"), RunSettings(overwrite=overwrite))


def parsed(path: Path) -> list[tuple[str, list[str]]]:
    """(query, records) in the file's order; its ranks and scores are checked."""
    lists: list[tuple[str, list[str]]] = []
    scores: list[float] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        query, q0, record, rank, score, _ = line.split(" ")
        if not lists or lists[-1][0] != query:
            lists.append((query, []))
            scores = []
        lists[-1][1].append(record)
        scores.append(float(score))
        assert (q0, int(rank)) == ("Q0", len(lists[-1][1]))
        assert scores == sorted(set(scores), reverse=True)  # tools that sort by score keep it
    return lists


@pytest.mark.parametrize("protocol", ["deploy", "medium", "hard"])
def test_a_trec_file_holds_the_order_of_the_ranking(
    run: Path, tmp_path: Path, protocol: str
) -> None:
    written = exported(run, tmp_path / "made" / "run.txt", protocol=protocol)
    expected = [
        (query, rows.column("record_id").to_pylist())
        for query, rows in read_ranking(str(run), protocol)
    ]
    assert len(expected) == written["queries"] == 4
    assert len(list((run / "ranking" / f"protocol={protocol}").iterdir())) == 2
    assert parsed(tmp_path / "made" / "run.txt") == expected
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["run.txt"]


def test_the_command_writes_it_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.txt"
    command = ["export", str(run), "--format", "trec", "--out", str(out)]
    assert main(command) == 0
    assert "4 queries" in capsys.readouterr().out
    whole = out.read_bytes()

    out.write_text("mine")
    assert main(command) == 2
    assert f"{out} exists" in capsys.readouterr().err and out.read_text() == "mine"

    assert main([*command, "--overwrite"]) == 0
    assert out.read_bytes() == whole


def test_what_cannot_be_written_is_a_sentence(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.txt"
    with pytest.raises(UserError, match="it must be one of arrays, trec"):
        exported(run, out, format="excel")
    with pytest.raises(UserError, match="one of deploy, medium, hard"):
        exported(run, out, protocol="easy")
    with pytest.raises(UserError, match="the ranking is not there; make it with 'rerank'"):
        exported(run.parent / "gallery", out)
    with pytest.raises(UserError, match="is a folder"):
        exported(run, tmp_path)
    with pytest.raises(UserError, match="--locals goes with"):
        exported(run, out, locals=True)
    with pytest.raises(UserError, match="--protocol goes with"):
        exported(run.parent / "gallery", tmp_path / "e", format="arrays", protocol="hard")
    assert not list(tmp_path.iterdir())


def test_a_run_without_labels_has_only_the_order_without_them(
    run: Path, tmp_path: Path, configuration: Path
) -> None:
    config = read_config(str(configuration), {"out": str(tmp_path)})
    config.pop("ground_truth")
    images = tmp_path / "shots"
    images.mkdir()
    (images / "00_1.png").write_bytes((Path(config["images"]) / "00_1.png").read_bytes())
    run_config({**config, "queries": str(images)}, "test", RunSettings(workers=2))

    with pytest.raises(UserError, match="holds no ranking under 'medium', but under deploy"):
        exported(tmp_path / "run", tmp_path / "run.txt", protocol="medium")
    exported(tmp_path / "run", tmp_path / "run.txt")
    assert [query for query, _ in parsed(tmp_path / "run.txt")] == ["shots/00_1.png"]


def test_a_writer_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format of an installed package, found by its entry point, whose writer stops half-way."""
    package = tmp_path / "package"
    (package / "mine-1.dist-info").mkdir(parents=True)
    (package / "mine-1.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1\n")
    (package / "mine-1.dist-info" / "entry_points.txt").write_text(
        "[rrt_pipelines.result_formats]\nmine = mine_results:write\n"
    )
    (package / "mine_results.py").write_text(
        "def write(lists, path):\n"
        "    with open(path, 'w') as file:\n"
        "        file.write(next(iter(lists)).query)\n"
        "        raise OSError(28, 'full')\n"
    )
    monkeypatch.syspath_prepend(package)
    out = tmp_path / "out" / "run.txt"
    with pytest.raises(UserError, match="no space left"):
        exported(run, out, format="mine")
    assert not list(out.parent.iterdir())
    sys.modules.pop("mine_results", None)
