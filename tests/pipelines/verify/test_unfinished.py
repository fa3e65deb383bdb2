"""verify and repair of outputs that are not finished: what is there is checked, what is missing is
counted.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.extract import options as extract_options
from pipelines.extract import stage as extract
from pipelines.options import build
from pipelines.verify.verify import verify
from tests.support.damage import flip, one
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR

SETTINGS = RunSettings(workers=1)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Of two archives the first is done; of the second, which was cut off, two pieces of four
    images.
    """
    (tmp_path / "in").mkdir()
    for archive in range(2):
        with tarfile.open(tmp_path / "in" / f"{archive}.tar", "w") as file:
            for number in range(10):
                data = jpeg(10 * archive + number)
                member = tarfile.TarInfo(f"{number}.jpg")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    whole = (tmp_path / "in" / "1.tar").read_bytes()
    (tmp_path / "whole.tar").write_bytes(whole)
    (tmp_path / "in" / "1.tar").write_bytes(whole[: int(0.9 * len(whole) - 10_240)])
    assert main(command(tmp_path)) == 2
    return tmp_path / "store"


def command(tmp_path: Path) -> list[str]:
    arguments = [
        "extract",
        "--images",
        f"{tmp_path}/in/*.tar",
        "--out",
        f"{tmp_path}/store",
        "--workers",
        "1",
    ]
    return [*arguments, "--extractor", "tests.tiny_extractor:TinyExtractor", "--rows-per-part", "4"]


def test_what_is_missing_is_counted_and_nothing_is_unnamed(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = verify(str(store))
    assert (found.finished, found.units, found.missing, found.leftovers) == (False, 2, 1, [])
    assert [problem.fix for problem in found.problems] == ["finish"]
    assert found.files > 5, "those of the pieces are checked, too"
    capsys.readouterr()
    assert main(["verify", str(store)]) == 1
    said = capsys.readouterr()
    assert (
        "1 of 2 units are not done yet; the command that makes it goes on from there, as does "
        "'repair" in said.err
    )
    assert "nothing names" not in said.out


def test_a_damaged_file_of_a_piece_is_found_and_made_again(store: Path, tmp_path: Path) -> None:
    (piece,) = (store / "pieces").glob("archive-00001.00000.json")
    named = [name for name in piece.read_text().split('"') if name.startswith("global/")]
    flip(store / named[0])
    (found,) = verify(str(store))
    assert found.damaged_units == ["archive-00001"]
    (tmp_path / "in" / "1.tar").write_bytes((tmp_path / "whole.tar").read_bytes())
    assert main(["repair", str(store), "--own-class", EXTRACTOR]) == 0
    (found,) = verify(str(store))
    assert (found.problems, found.missing) == ([], 0)
    undisturbed: dict[str, Any] = {
        "images": f"{tmp_path}/in/*.tar",
        "out": f"{tmp_path}/other",
        "rows_per_part": 4,
    }
    undisturbed["extractor"] = "tests.tiny_extractor:TinyExtractor"
    manifest = extract.run(build(extract_options.Options, undisturbed, "test"), SETTINGS)
    assert f'"content": "{manifest.content}"' in one(store, "manifest.json").read_text()


def test_a_plan_that_is_gone_is_written_again_by_its_command(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in" / "1.tar").write_bytes((tmp_path / "whole.tar").read_bytes())
    assert main(command(tmp_path)) == 0
    (store / "plan" / "plan.json").unlink()
    assert main(["verify", str(store)]) == 1
    assert "first give the command that made it again" in capsys.readouterr().err
    assert main(command(tmp_path)) == 0
    assert main(["verify", str(store)]) == 0
