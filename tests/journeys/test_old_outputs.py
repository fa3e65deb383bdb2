"""Outputs of an old commit are opened, verified, repaired and continued.

What they are, and how they were made: tests/old_outputs/make.py. Nothing here follows a change of
the program but the words that it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Ended, command, findings
from tests.support.comparing import assert_same_output, contents, state
from tests.support.old_outputs import MADE, OldOutputs, unpack

# An output that was stopped in its middle, and the finished one that it becomes.
HALF_DONE = {"half": "store", "half_archives": "archives", "half_repaired": "imported"}
FINISHED = [name for name in MADE["outputs"] if name not in HALF_DONE]

# Options of commands that add to a finished store, and say so in other words where nothing is left.
ADDING = {"--retry-failed", "--locals-for"}

# The defaults of that day of options that go into a recipe.
USUAL = {
    "extract": {
        "--global-dtype": "float32",
        "--local-dtype": "float16",
        "--locals": "all",
        "--max-locals": "0",
        "--decoding": "full",
        "--max-pixels": "100000000",
        "--min-side": "10",
        "--threads-per-worker": "1",
    },
    "import": {
        "--layout": "auto",
        "--max-locals": "500",
        "--scale-field": "feature",
        "--global-dtype": "float32",
        "--local-dtype": "float16",
    },
    "index": {"--seed": "0", "--rows-per-shard": "131072", "--max-memory": "8000000000"},
    "search": {"--k": "0", "--nprobe": "32", "--oversample": "2.0", "--threads-per-worker": "1"},
    "rerank": {"--reranker": "rrt", "--threads-per-worker": "1"},
    "report": {"--title": "Retrieval report", "--max-queries": "150"},
    "train": {
        "--lr": "0.0001",
        "--weight-decay": "0.0005",
        "--clip": "0.1",
        "--schedule": "constant",
        "--query-tokens": "500",
        "--gallery-tokens": "500",
        "--precision": "float32",
        "--seed": "0",
    },
}


pytestmark = pytest.mark.usefixtures("workers_end")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> OldOutputs:
    """The old outputs, for tests that change nothing of them."""
    return unpack(tmp_path_factory.mktemp("untouched"))


@pytest.fixture
def old(tmp_path: Path) -> OldOutputs:
    """The old outputs, for one test alone."""
    return unpack(tmp_path)


def written_out(arguments: list[str]) -> list[str]:
    """A command with that day's defaults of the options that it leaves out."""
    usual = USUAL.get(arguments[0], {}).items()
    return [*arguments, *(text for pair in usual if pair[0] not in arguments for text in pair)]


def repaired(output: Path) -> Ended:
    """What `repair` does; the stores' extractor is no part of the program, and is trusted here."""
    return command("repair", output, "--own-class", "tests.tiny_extractor:ExactExtractor")


def units_of(output: Path) -> list[str]:
    """The units of an output that are done, by their markers."""
    return sorted(path.stem for path in (output / "done").glob("*.json"))


def files_of(output: Path, unit: str) -> list[Path]:
    """The data files of a unit, by its marker."""
    marker = json.loads((output / f"done/{unit}.json").read_text())
    return [output / entry["name"] for entry in marker["files"]]


def one(folder: Path, pattern: str) -> Path:
    """The one file of a pattern."""
    (found,) = folder.glob(pattern)
    return found


# -------------------------------------------------------------------------------------- as they lie


def test_the_old_outputs_are_those_of_that_day(untouched: OldOutputs) -> None:
    """They name their workers by places in the code of then, and hold all of the old spellings."""
    jobs = [json.loads(path.read_text()) for path in (untouched / "").rglob("plan/job.json")]
    assert {job["worker"] for job in jobs} == {
        "",  # of train
        "pipelines.describe_units:DescribeUnit",
        "pipelines.evaluate:Evaluate",
        "pipelines.import_store:ImportPart",
        "pipelines.index:Fill",
        "pipelines.index:Merge",
        "pipelines.index:Train",
        "pipelines.layers:DescribeLocals",
        "pipelines.report:MakeReport",
        "pipelines.rerank:Replay",
        "pipelines.rerank:ScorePairs",
        "pipelines.search:FetchCandidates",
        "pipelines.search:MakeShortlist",
    }

    plans = [json.loads(path.read_text()) for path in (untouched / "").rglob("plan/plan.json")]
    keys = {key for plan in plans for unit in plan["units"] for key in unit["payload"]}
    assert {"again", "last", "maker", "missing", "open", "repeated", "stride"} <= keys


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_output_is_whole(name: str, untouched: OldOutputs) -> None:
    found = findings(untouched / name)
    assert found and all(output["finished"] for output in found)
    assert [output["problems"] + output["leftovers"] for output in found] == [[]] * len(found)


@pytest.mark.parametrize(
    ("name", "missing"), [("half", 2), ("half_archives", 3), ("half_repaired", 1)]
)
def test_a_half_done_output_is_reported_as_unfinished(
    name: str, missing: int, untouched: OldOutputs
) -> None:
    (found,) = findings(untouched / name)
    assert (found["finished"], found["missing"], found["damaged_units"]) == (False, missing, [])


@pytest.mark.parametrize("name", FINISHED)
def test_the_old_commands_find_it_already_made(name: str, untouched: OldOutputs) -> None:
    before = contents(untouched.root)
    for arguments in untouched.commands(name):
        ended = command(*arguments)
        assert ended.code == 0, ended.said
        assert ADDING & set(arguments) or "already made" in ended.said, ended.said
        assert contents(untouched.root) == before, arguments


# --------------------------------------------------------------------------------- options left out


@pytest.mark.parametrize("option", USUAL["extract"])
def test_an_option_left_out_is_the_one_in_the_plan(option: str, untouched: OldOutputs) -> None:
    """It was written out when the store was made; its default may have changed since."""
    ((*arguments,),) = untouched.commands("store")
    place = arguments.index(option)
    before = contents(untouched.root)
    ended = command(*arguments[:place], *arguments[place + 2 :])
    assert (ended.code, "already made" in ended.said) == (0, True), ended.said
    assert contents(untouched.root) == before


@pytest.mark.parametrize("name", [name for name in FINISHED if name != "store"])
def test_the_old_defaults_written_out_are_the_same_recipe(name: str, untouched: OldOutputs) -> None:
    """They were left out when it was made."""
    before = contents(untouched.root)
    for arguments in untouched.commands(name):
        if ADDING & set(arguments):
            continue
        ended = command(*written_out(arguments))
        assert (ended.code, "already made" in ended.said) == (0, True), ended.said
    assert contents(untouched.root) == before


# ----------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("how", ["its command", "repair"])
@pytest.mark.parametrize("name", HALF_DONE)
def test_half_done_it_goes_on_without_doing_a_committed_unit_again(
    name: str, how: str, old: OldOutputs
) -> None:
    output = old / name
    markers = [*output.glob("done/*.json"), *output.glob("pieces/*.json")]
    entries = [entry for marker in markers for entry in json.loads(marker.read_text())["files"]]
    committed = [*markers, *(output / entry["name"] for entry in entries)]
    before = state(*committed)
    assert len(before) > 3

    made_by, *_ = old.commands(name)
    ended = command(*made_by) if how == "its command" else repaired(output)
    assert ended.code == 0, ended.said
    assert state(*committed) == before
    same_bytes = assert_same_output(old / HALF_DONE[name], output)

    repaired(output)  # forgets the repair that was killed, where there was one
    (found,) = findings(output)
    assert found["problems"] == [] and (found["leftovers"] == [] or not same_bytes)
    after = contents(output)
    assert "already made" in command(*made_by).said
    assert contents(output) == after


def test_failed_images_are_tried_again(old: OldOutputs) -> None:
    """An old store grows by a part; what it had stays as it is."""
    store = old / "store"
    parts = [path for unit in units_of(store) for path in files_of(store, unit)]
    before = state(*parts, store / "done")
    images = old.root / "inputs/images"
    (images / "1-3.png").write_bytes((images / "50% off.png").read_bytes())

    ended = command(*old.commands("store")[0], "--retry-failed")
    assert ended.code == 0, ended.said
    assert before.items() <= state(store).items()
    (found,) = findings(store)
    assert (found["problems"], found["counts"]["failed"], found["units"]) == ([], 0, 5)


def test_a_store_gets_further_locals(old: OldOutputs) -> None:
    """Those that are in its old layers are not described again."""
    layers = old / "lazy/layers"
    before = state(layers)
    asked = old.root / "inputs/asked.txt"
    asked.write_text(asked.read_text() + "images/3-1.png\nimages/3-2.png\n")

    ended = command(*old.commands("lazy")[2])
    assert ended.code == 0, ended.said
    assert before.items() <= state(layers).items()
    found = findings(layers)
    assert [output["problems"] for output in found] == [[], [], []]
    assert sorted(output["counts"]["inputs"] for output in found) == [2, 2, 6]


# ------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    """Cut a file off in its middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip the bits of the byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "globals cut off": (cut, "global/part-00000.*"),
    "a byte of globals": (flip, "global/part-00002.*"),
    "globals gone": (Path.unlink, "global/part-00001.*"),
    "locals gone": (Path.unlink, "local/full/part-00002.*"),
    "a byte of locals": (flip, "local/full/part-00003.*"),
    "failures cut off": (cut, "failures/part-00001.*"),
    "a marker gone": (Path.unlink, "done/part-00000.json"),
    "a marker cut off": (cut, "done/part-00003.json"),
    "no manifest": (Path.unlink, "manifest.json"),
    "the parts table cut off": (cut, "parts.parquet"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_a_store_is_repaired(damage: str, old: OldOutputs, untouched: OldOutputs) -> None:
    store = old / "store"
    harm, pattern = DAMAGES[damage]
    harm(one(store, pattern))
    assert [bool(output["problems"]) for output in findings(store)] == [True]

    ended = repaired(store)
    assert ended.code == 0, ended.said
    same_bytes = assert_same_output(untouched / "store", store)
    (found,) = findings(store)
    assert found["problems"] == [] and (found["leftovers"] == [] or not same_bytes)


# Outputs in the order in which each is made of those before it, with units that cannot be done
# again as they were: what failed in them was left to --retry-failed.
ALL_UNITS = {
    "queries": "",
    "retried": "part-00000",
    "retried_archive": "archive-00000",
    "archives": "",
    "imported": "",
    "lazy": "",
    "lazy/layers/*": "",
    "index/shards": "",
    "index/search": "",
    "index_ivf/trained": "",
    "index_ivf/shards": "",
    "index_ivf/search": "",
    "run/shortlist": "",
    "run/scores": "",
    "run/ranking": "",
    "run/evaluation": "",
    "run/ensemble/*": "",
    "run/report": "",
    "run_rrt/candidates": "",
    "run_rrt/shortlist": "",
    "run_rrt/scores": "",
    "run_rrt/ranking": "",
}


@pytest.mark.parametrize("pattern", ALL_UNITS)
def test_all_units_of_an_output_are_done_again(
    pattern: str, old: OldOutputs, untouched: OldOutputs
) -> None:
    """Of each unit the last file has a wrong byte: every worker that a plan names does its work."""
    for output in sorted((old / "").glob(pattern)):
        units = [unit for unit in units_of(output) if unit != ALL_UNITS[pattern]]
        for unit in units:
            flip(files_of(output, unit)[-1])
        assert sorted(findings(output)[0]["damaged_units"]) == units

        ended = repaired(output)
        assert ended.code == 0, ended.said
        assert_same_output(untouched / str(output.relative_to(old / "")), output)
        assert findings(output)[0]["problems"] == []


# ---------------------------------------------------------------------------------------- made anew


@pytest.mark.parametrize("name", ["store", "queries", "archives", "imported"])
def test_made_anew_a_store_is_the_same(name: str, untouched: OldOutputs, tmp_path: Path) -> None:
    ((*arguments,),) = untouched.commands(name)
    arguments[arguments.index("--out") + 1] = str(tmp_path / name)
    ended = command(*written_out(arguments))
    assert ended.code == 0, ended.said
    assert_same_output(untouched / name, tmp_path / name)


@pytest.mark.parametrize(
    ("index", "run"), [("index", "run"), ("index_ivf", "run_rrt"), ("lazy_index", "lazy_run")]
)
def test_results_of_the_old_stores_are_the_same(
    index: str, run: str, untouched: OldOutputs, tmp_path: Path
) -> None:
    """Searched, reranked and evaluated anew: scores to 1e-5, all else by bytes."""
    places = {str(untouched / name): str(tmp_path / name) for name in (index, run)}
    for arguments in [*untouched.commands(index), *untouched.commands(run)]:
        ended = command(*(places.get(text, text) for text in written_out(arguments)))
        assert ended.code == 0, ended.said

    for name in (index, run):
        outputs = [path.parent for path in (untouched / name).rglob("manifest.json")]
        assert outputs
        for output in outputs:
            assert_same_output(output, tmp_path / output.relative_to(untouched / ""))
