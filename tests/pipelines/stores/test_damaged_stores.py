"""A store, an index or a run with a missing or cut file: every command names it and the fix."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import command
from tests.support.hostile import assert_ended_well

COMMANDS = {
    "index": "index --stores {root}/gallery --out {out}",
    "search": "search --queries {root}/queries --index {root}/index --out {out}",
    "rerank": "rerank --queries {root}/queries --out {out} --reranker mutual_nn --shortlist 5",
    "evaluate": "evaluate --out {out} --ground-truth {truth} --ensemble 0.5,0.5",
    "report": "report --out {out} --ground-truth {truth}",
    "report alone": "report --out {out}",
    "estimate": "index --stores {root}/gallery --out {out} --dry-run",
    "export": "export {root}/gallery --out {out}",
    "export --locals": "export {root}/gallery --locals --out {out}",
    "export ranking": "export {out} --format trec --out {out}/ranking.txt",
    "train": "train --stores {root}/gallery --labels {labels} --out {out} --steps 1 --triplets 1 "
    "--validation 0 --neighbours 10 --least-positives 1",
}
NEEDED = {  # what must lie in the run's folder
    "rerank": ["shortlist"],
    "evaluate": ["shortlist", "scores", "ranking"],
    "report": ["shortlist", "scores", "ranking", "evaluation"],
    "report alone": ["shortlist", "scores", "ranking", "evaluation"],
    "export ranking": ["shortlist", "scores", "ranking"],
}
GLOBALS, LOCALS = "gallery/global/part-00000.*", "gallery/local/full/part-00000.*"
CASES = [
    *((name, GLOBALS) for name in ("index", "search", "rerank", "export", "train", "estimate")),
    *((name, LOCALS) for name in ("rerank", "export --locals")),
    ("search", "queries/global/part-00000.*"),
    ("search", "index/search/search-000.*"),
    ("rerank", "queries/local/full/part-00000.*"),
    ("rerank", "{out}/shortlist/part-00000.*"),
    ("evaluate", "{out}/shortlist/part-00000.*"),
    ("evaluate", "{out}/scores/part-00000.*"),
    ("report", "{out}/shortlist/part-00000.*"),
    ("report alone", "{out}/shortlist/part-00000.*"),
    ("report", "{out}/evaluation/per_query.parquet"),
    ("report", "{out}/evaluation/metrics.json"),
    ("export ranking", "{out}/ranking/protocol=deploy/part-00000.*"),
    *((name, "gallery/parts.parquet") for name in COMMANDS if name not in NEEDED),
    *((name, "gallery/manifest.json") for name in COMMANDS if name not in ("search", *NEEDED)),
    *(("evaluate", f"{{out}}/{folder}/parts.parquet") for folder in ("shortlist", "scores")),
    ("search", "index/search/parts.parquet"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, configuration: Path) -> Path:
    """What `run` makes of thirty photographs."""
    root = tmp_path_factory.mktemp("whole")
    ended = command("run", "--config", configuration, "--set", f"out={root}", "--workers", 1)
    assert ended.code == 0, ended.said
    ids = [f"{scene:02}_{shot}.png,{scene}" for scene in range(10) for shot in range(3)]
    (root / "labels.csv").write_text("\n".join(ids))
    return root


@pytest.fixture
def damaged(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Iterator[Path]:
    """The file of a case, missing or cut to half; whole again afterwards."""
    name, pattern, how = request.param
    out = tmp_path / "out"
    for folder in NEEDED.get(name, ()):
        shutil.copytree(made / "run" / folder, out / folder)
    above = out if pattern.startswith("{out}") else made
    (path,) = above.glob(pattern.removeprefix("{out}/"))
    whole = path.read_bytes()

    path.unlink() if how == "missing" else path.write_bytes(whole[: len(whole) // 2])
    yield path
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        pytest.param(name, (name, pattern, how), id=f"{name}-{pattern}-{how}")
        for name, pattern in CASES
        for how in ("missing", "cut")
    ],
    indirect=["damaged"],
)
def test_a_damaged_file_is_named_with_its_fix(
    name: str, damaged: Path, made: Path, tmp_path: Path, photographs: Path
) -> None:
    words = COMMANDS[name].format(
        root=made,
        out=tmp_path / "out",
        truth=photographs.parent / "ground_truth.json",
        labels=made / "labels.csv",
    )

    workers = [] if name.partition(" ")[0] in ("train", "export") else ["--workers", 1]
    ended = command(*words.split(), *workers)

    if damaged.name == "manifest.json" and not damaged.exists():
        assert ended.code == 2, ended  # as of a store that is not finished
        return
    assert_ended_well(ended, 1)
    assert re.search(rf"{re.escape(str(damaged))}: .*; 'repair .*' makes it again", ended.said)
    assert "failed 3 times" not in ended.said
