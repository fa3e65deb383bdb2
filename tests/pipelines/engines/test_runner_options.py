"""--runner and Beam's own flags: what cannot be is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.runners import runner as beam

from pipelines.engines.settings import BEAM_RUNNERS, RunSettings
from schemas.errors import UserError
from tests.support.command_line import command


def test_the_names_are_those_that_beam_knows() -> None:
    assert set(map(str.lower, BEAM_RUNNERS)) == set(beam._RUNNER_MAP)


@pytest.mark.parametrize("name", ["local", "SparkRunner", "spark", "FNAPIRUNNER", "my.own.Runner"])
def test_runners_that_can_be(name: str) -> None:
    assert RunSettings(runner=name).runner == name


@pytest.mark.parametrize("name", ["NoSuchRunner", "", "Local", "Spark Runner", "x" * 5_000])
def test_a_misspelt_runner_is_refused_at_once(name: str, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    ended = command("extract", "--images", photographs, "--out", out, f"--runner={name}")
    assert ended.code == 2 and ended.said.count("\n") == 1, ended
    assert "--runner is " in ended.said and not out.exists()


@pytest.mark.parametrize("flag", ["--project=mine", "--labels=a", "--streaming"])
def test_beams_own_options_are_refused_by_the_local_runner(
    flag: str, photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    ended = command("extract", "--images", photographs, "--out", out, flag)
    assert ended.code == 2 and not out.exists()
    assert f"{flag.partition('=')[0]} is an option of Beam, and the local runner" in ended.said
    with pytest.raises(UserError, match="is an option of Beam"):
        RunSettings(beam_options=(flag,))
