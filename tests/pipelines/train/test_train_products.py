"""train-products from the command line: three modes one after another, on pictures of 64 pixels."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipelines.cli import main
from rrt_core.checkpoints import PRODUCTS, load_checkpoint
from rrt_core.products.backbone import create_backbone, load_backbone_state


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three products of three pictures each, two other pictures, labels."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    rows = []
    for product in range(3):
        base = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        for number in range(3):
            name = f"{product}-{number}.png"
            cv2.imwrite(str(folder / name), np.roll(base, 3 * number, axis=1))
            rows.append((name, f"carton {product}"))
    (folder / "others").mkdir()
    for number in range(2):
        cv2.imwrite(
            str(folder / "others" / f"{number}.png"),
            rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        )
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "product"), *rows])
    return folder


def command(shop: Path, out: Path, mode: str, *more: str) -> list[str]:
    data = [
        "--images",
        str(shop),
        "--labels",
        str(shop / "labels.csv"),
        "--unlabelled",
        str(shop / "others"),
    ]
    small = [
        "--resize",
        "64",
        "--crop",
        "64",
        "--copies",
        "2",
        "--batch",
        "6",
        "--steps",
        "2",
        "--validation",
        "0.34",
    ]
    small += ["--warmup", "0", "--checkpoint-every", "1", "--shortlist", "2", "--device", "cpu"]
    return ["train-products", *data, "--out", str(out), "--mode", mode, *small, *more]


def test_three_modes_one_after_another(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {mode: tmp_path / mode for mode in ("global", "frozen", "joint")}
    late = ("--trained", "late")
    assert (
        main(command(shop, folders["global"], "global", "--backbone-weights", "random", *late)) == 0
    )
    weights = {mode: str(folder / "weights.safetensors") for mode, folder in folders.items()}
    assert main(command(shop, folders["frozen"], "frozen", "--weights", weights["global"])) == 0
    joint = command(shop, folders["joint"], "joint", "--weights", weights["frozen"], *late)
    assert main(joint) == 0
    said = capsys.readouterr()
    assert (
        "train-products joint  step 2/2" in said.err
        and "ETA" in said.err
        and "val_recall_1" in said.out
    )

    found = {mode: load_checkpoint(path, variant=PRODUCTS) for mode, path in weights.items()}
    for mode, checkpoint in found.items():
        assert checkpoint.notes["mode"] == mode
        assert checkpoint.model.config.backbone == "efficientnet_lite0"
        load_backbone_state(
            create_backbone("efficientnet_lite0", "random").network, checkpoint.backbone, mode
        )
        assert sorted(p.name for p in folders[mode].iterdir() if p.is_file()) == [
            "log.csv", "manifest.json", "parts.parquet", "weights.safetensors",
        ]  # fmt: skip
    before, after = found["global"], found["frozen"]
    assert all(torch.equal(value, after.backbone[key]) for key, value in before.backbone.items())
    assert torch.equal(before.model.remap.weight, after.model.remap.weight)
    assert not torch.equal(before.model.remap_local.weight, after.model.remap_local.weight)
    assert any(
        not torch.equal(value, found["joint"].backbone[key])
        for key, value in after.backbone.items()
    )

    manifest = json.loads((folders["joint"] / "manifest.json").read_text())
    facts = manifest["facts"]["units"]["training"]
    assert len(facts["held_out"]) == 1 and 0 <= facts["validation"]["val_recall_1"] <= 1
    assert facts["validation"]["val_recall_100"] == facts["validation"]["val_recall_100_global"]
    log = list(csv.DictReader((folders["joint"] / "log.csv").open()))
    assert {"loss", "accuracy", "lr", "val_map"} <= {row["name"] for row in log}

    # Again: nothing is done. With other options: refused.
    written = (folders["joint"] / "weights.safetensors").stat().st_mtime_ns
    assert main(joint) == 0
    assert "already made" in capsys.readouterr().err
    assert (folders["joint"] / "weights.safetensors").stat().st_mtime_ns == written
    assert main([*joint, "--lr", "0.5"]) == 2
    assert "another recipe (lr was 0.0001, is now 0.5)" in capsys.readouterr().err

    # A damaged manifest, or another recipe: made again over the old one, which goes at the end.
    (folders["joint"] / "manifest.json").write_text("{")
    assert main([*joint, "--overwrite"]) == 0
    assert (folders["joint"] / "weights.safetensors").stat().st_mtime_ns > written
    assert main([*joint, "--lr", "0.5", "--overwrite"]) == 0
    recipe = json.loads((folders["joint"] / "manifest.json").read_text())["recipe"]
    assert recipe["lr"] == 0.5 and not (folders["joint"] / "next").exists()


def test_mistakes_are_told_in_one_sentence(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "no_product.csv").write_text("path\na.png\n")
    (tmp_path / "no_file.csv").write_text("path,product\nnone.png,a\n")
    cases = {
        "mode joint begins with": command(shop, out, "joint", "--backbone-weights", "random"),
        "no column 'product'": [
            *command(shop, out, "global"),
            "--labels",
            str(tmp_path / "no_product.csv"),
        ],
        "line 2: there is no file": [
            *command(shop, out, "global"),
            "--labels",
            str(tmp_path / "no_file.csv"),
        ],
        "cannot be read": [*command(shop, out, "global"), "--labels", str(tmp_path / "none.csv")],
        "there is no such file": command(shop, out, "frozen", "--weights", str(tmp_path / "none")),
        "needs a local file of weights": command(
            shop, out, "global", "--backbone", "timm:resnet18"
        ),
    }
    for said, arguments in cases.items():
        assert main(arguments) == 2, said
        printed = capsys.readouterr().err
        assert said.lower() in printed.lower() and "Traceback" not in printed
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert main(command(shop, mine, "global", "--backbone-weights", "random", *more)) == 2
        assert "holds files of something else" in capsys.readouterr().err
    assert (mine / "thesis.tex").read_text() == "mine"


def test_labels_with_and_without_a_line_of_names(tmp_path: Path) -> None:
    from pipelines.train.products_options import Options, read_photographs

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    read = []
    for text in ("path,product\na.png,x\nb.png,y\n", "a.png,x\nb.png,y\n", "a.png,x,64\nb.png,y\n"):
        (tmp_path / "labels.csv").write_text(text)
        given = Options(
            images=str(tmp_path), labels=str(tmp_path / "labels.csv"), out="o", mode="global"
        )
        read.append(read_photographs(given).content())
    assert read[0] == read[1] == read[2]
