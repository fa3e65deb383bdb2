"""Made once by the commit 61cf4df; not run by the suite: outputs of that day's format, and inputs.

They lie beside this file and stay for ever: later code opens, verifies, repairs and continues them
(tests/journeys/test_old_outputs.py). Made again by a later commit they would prove nothing, so that
this script refuses where they are; a later format gets a folder and a script of its own.

    python tests/old_outputs/make.py      # in a checkout of that commit, with ExactExtractor put in

Each is made by the command line as a user has it. All lie below PLACE while they are made, and that
place is in their plans and manifests; the tests put their own in its stead. They are packed, so
that no tool that goes through a checkout changes one, and so that a killed command's empty folders
stay:

    old_outputs.tar.xz      inputs/ and outputs/, a folder a name
    commands.json           for each output the commands that made it, in their order

ExactExtractor computes in whole numbers, so that no processor and no version of a package changes a
row; PNG is decoded alike everywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
PLACE = Path("/tmp/rrt-old-outputs")
INPUTS, OUTPUTS = PLACE / "inputs", PLACE / "outputs"

IMAGES = ("--images", f"{INPUTS}/images")
TRUTH = ("--ground-truth", f"{INPUTS}/ground_truth.json")
EXACT = ("--extractor", "tests.tiny_extractor:ExactExtractor")
NO_PICTURE = b"no picture"

# Put into each Python below: the host has a name that is nobody's, and where KILL_BEFORE names a
# marker, the worker that is about to create it kills its driver and itself, its files in place.
INJECTED = """
import os, signal, socket

socket.gethostname = lambda: "host"
link = os.link


def killing(source, target, **more):
    if os.environ.get("KILL_BEFORE") and str(target).endswith(os.environ["KILL_BEFORE"]):
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return link(source, target, **more)


os.link = killing
"""


# ------------------------------------------------------------------------------------------- inputs


def picture(scene: int, shot: int = 0) -> bytes:
    """A PNG of 48 x 48 pixels: coarse colours of the scene, seen from a place of the shot's own."""
    chance = b"".join(hashlib.sha256(bytes([scene, number])).digest() for number in range(8))
    blocks = np.frombuffer(chance[: 9 * 9 * 3], np.uint8).reshape(9, 9, 3)
    canvas = blocks.repeat(8, axis=0).repeat(8, axis=1)
    view = canvas[3 * shot : 3 * shot + 48, 2 * shot : 2 * shot + 48]

    made = io.BytesIO()
    Image.fromarray(view // 8 * (8 - shot)).save(made, "png")
    return made.getvalue()


def make_inputs() -> None:
    """All inputs as they are before the first command."""
    images = {f"{n}-{shot}.png": picture(n, shot) for n in range(4) for shot in range(3)}
    images |= {"1-3.png": NO_PICTURE, "50% off.png": picture(9)}
    write_folder("images", images)
    write_folder(
        "retried_images", {"a.png": picture(10), "b.png": NO_PICTURE, "c.png": picture(12)}
    )

    make_archives()
    make_lists(sorted(images))

    signs = np.unpackbits(np.frombuffer(hashlib.sha256(b"imported").digest(), np.uint8))
    vectors = (2.0 * signs[: 5 * 16].reshape(5, 16) - 1) / 4  # L2 = 1
    np.save(INPUTS / "vectors.npy", vectors.astype(np.float32))
    (INPUTS / "vectors.txt").write_text("".join(f"{number}.jpg\n" for number in range(5)))


def make_archives() -> None:
    """A tar, a zip, and a tar with an image that cannot be decoded."""
    folder = INPUTS / "archives"
    folder.mkdir()
    write_tar(
        folder / "tarred.tar", {f"jpg/{number}.png": picture(20 + number) for number in range(5)}
    )
    damaged = bytes(len(picture(41)))
    write_tar(
        folder / "retried.tar", {"a.png": picture(40), "b.png": damaged, "c.png": picture(42)}
    )

    with zipfile.ZipFile(folder / "zipped.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(zipfile.ZipInfo(f"deep/{number}.png"), picture(30 + number))


def make_lists(names: list[str]) -> None:
    """Sources, lists, labels, a ground truth of three queries; `names` are the images'."""
    sources = [
        {"name": "tarred", "images": f"{INPUTS}/archives/tarred.tar"},
        {
            "name": "zipped",
            "images": f"{INPUTS}/archives/zipped.zip",
            "list": f"{INPUTS}/listed.txt",
        },
        {"name": "folder", "images": f"{INPUTS}/retried_images"},
    ]
    (INPUTS / "sources.yaml").write_text(json.dumps(sources, indent=1))  # JSON is YAML
    (INPUTS / "listed.txt").write_text("0.png\n2.png\nnot-there.png\n")
    (INPUTS / "asked.txt").write_text("images/2-2.png\nimages/50%25 off.png\n")

    labels = [f"{name},{name[0]}\n" for name in names if name[1] == "-"]
    (INPUTS / "labels.csv").write_text("path,label\n" + "".join(labels))

    queries = [
        {
            "name": f"{scene}-0.png",
            "box": [4, 4, 40, 42] if scene == 0 else None,
            "easy": [names.index(f"{scene}-1.png")],
            "hard": [names.index(f"{scene}-2.png")],
            "junk": [names.index(f"{scene}-0.png")],
        }
        for scene in range(3)
    ]
    truth = {"schema": "rrt-ground-truth/1", "name": "scenes", "gallery": names, "queries": queries}
    (INPUTS / "ground_truth.json").write_text(json.dumps(truth, indent=1))


def write_folder(name: str, files: dict[str, bytes]) -> None:
    """A folder of files."""
    (INPUTS / name).mkdir()
    for file, data in files.items():
        (INPUTS / name / file).write_bytes(data)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar without times and owners."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


# ------------------------------------------------------------------------------------------ outputs


class Commands:
    """Runs commands and keeps them: output -> its commands, in their order."""

    def __init__(self) -> None:
        self.made: dict[str, list[str]] = {}

    def __call__(self, name: str, *arguments: str, kill_before: str = "") -> None:
        """Run a command for the output `name`; with `kill_before` it is killed at that marker."""
        one = ("--threads", "1") if arguments[0] == "train" else ("--workers", "1")
        command = [*arguments, *one]
        self.made.setdefault(name, []).append(shlex.join(command))
        run(command, kill_before)


def run(command: list[str], kill_before: str) -> None:
    """A command of the command line; it must end well, or be killed where it should be."""
    injected = PLACE.with_name(f"{PLACE.name}-injected")
    injected.mkdir(exist_ok=True)
    (injected / "sitecustomize.py").write_text(INJECTED)
    root = HERE.parents[1]
    paths = os.pathsep.join([str(injected), str(root)])
    environment = {**os.environ, "PYTHONPATH": paths, "KILL_BEFORE": kill_before}

    called = [sys.executable, "-m", "pipelines", *command]
    code = subprocess.run(called, cwd=root, env=environment, check=False).returncode
    shutil.rmtree(injected)
    if (code >= 0) if kill_before else code:
        sys.exit(f"{command} ended with {code}")


def out(name: str) -> tuple[str, str]:
    """Where an output is made."""
    return "--out", f"{OUTPUTS}/{name}"


def make_stores(do: Commands) -> None:
    """Stores of folders and archives: finished, stopped in their middle, and tried again."""
    four, two = ("--rows-per-part", "4"), ("--rows-per-part", "2")

    # The gallery of all runs: 14 images, one of which cannot be decoded. Every option of which that
    # day's default went into the recipe is written out here, and left out for `half`.
    usual = {
        "global-dtype": "float32",
        "local-dtype": "float16",
        "locals": "all",
        "max-locals": "0",
    }
    usual |= {"decoding": "full", "max-pixels": "100000000", "min-side": "10"}
    usual |= {"threads-per-worker": "1"}
    written_out = [text for name, value in usual.items() for text in (f"--{name}", value)]
    gallery = ("extract", *IMAGES, *EXACT, *four)
    do("store", *gallery, *out("store"), *written_out)
    do("half", *gallery, *out("half"), kill_before="half/done/part-00002.json")
    do("queries", "extract", *IMAGES, *TRUTH, "--take", "queries", *out("queries"), *EXACT, *two)

    # Binary locals; b.png is whole when it is tried again.
    retried = ("extract", "--images", f"{INPUTS}/retried_images", *out("retried"), *EXACT, *two)
    retried = (*retried, "--local-dtype", "binary")
    do("retried", *retried)
    (INPUTS / "retried_images/b.png").write_bytes(picture(11))
    do("retried", *retried, "--retry-failed")

    # The same of an archive: for the one with a damaged image comes a whole one of the same size.
    again = ("extract", "--images", f"{INPUTS}/archives/retried.tar", *out("retried_archive"))
    again = (*again, *EXACT, *two, "--locals", "none")
    do("retried_archive", *again)
    whole = {"a.png": picture(40), "b.png": picture(41), "c.png": picture(42)}
    write_tar(INPUTS / "archives/retried.tar", whole)
    do("retried_archive", *again, "--retry-failed")

    # A tar, a zip with a list, of which no archive holds one image, and a folder; int8 locals.
    several = (
        "extract",
        "--sources",
        f"{INPUTS}/sources.yaml",
        *EXACT,
        *two,
        "--local-dtype",
        "int8",
    )
    do("archives", *several, *out("archives"))
    stop = "half_archives/pieces/archive-00000.00002.json"
    do("half_archives", *several, *out("half_archives"), kill_before=stop)

    # Descriptors that others made; and the same store, damaged, whose repair was killed.
    vectors = ("import", "npy", f"{INPUTS}/vectors.npy", "--list", f"{INPUTS}/vectors.txt", *two)
    do("imported", *vectors, *out("imported"))
    do("half_repaired", *vectors, *out("half_repaired"))
    (victim,) = (OUTPUTS / "half_repaired/global").glob("part-00001.*")
    victim.write_bytes(NO_PICTURE)
    stop = "half_repaired/done/part-00001.json"
    do("half_repaired", "repair", f"{OUTPUTS}/half_repaired", kill_before=stop)


def make_runs(do: Commands) -> None:
    """Indexes, runs, weights, and a store that gets its locals later."""
    # An exact index, and one that is trained and lies in several files; both of two shards.
    shards = ("index", "--stores", f"{OUTPUTS}/store", "--rows-per-shard", "8")
    do("index", *shards, *out("index"))
    ivf = ("--key", "IVF2,Flat", "--training-rows", "13", "--max-memory", "2000")
    do("index_ivf", *shards, *out("index_ivf"), *ivf)

    searched = ("search", "--queries", f"{OUTPUTS}/queries")
    reranked = ("rerank", "--queries", f"{OUTPUTS}/queries", "--shortlist", "5")
    reranked = (*reranked, "--queries-per-unit", "1")

    # All of a run, reranked by a cascade without weights.
    labelled = (*out("run"), *TRUTH, "--shortlist", "5")
    blocks = ("--queries-per-block", "2")
    do("run", *searched, "--index", f"{OUTPUTS}/index", *labelled, *blocks)
    cascade = (
        "first=mutual_nn",
        "second=mutual_nn",
        "first_options={query_tokens: 5, gallery_tokens: 5, min_similarity: 0.0}",
        "second_options={min_similarity: 0.4}",
        "keep=3",
    )
    options = [text for option in cascade for text in ("--reranker-option", option)]
    do("run", *reranked, *out("run"), *TRUTH, "--reranker", "cascade", *options)
    do("run", "evaluate", *out("run"), *TRUTH, "--ensemble", "0.5,0.3")
    do("run", "report", *out("run"), *TRUTH, "--thumbnail", "24")

    # Weights of a very small Reranking Transformer; a run with them, without labels, and from the
    # index that lies in several files.
    training = ("train", "--stores", f"{OUTPUTS}/store", "--labels", f"{INPUTS}/labels.csv")
    small = ("--layers", "1", "--heads", "2", "--feedforward", "8", "--init", "matching")
    few = ("--steps", "2", "--triplets", "2", "--neighbours", "12", "--least-positives", "1")
    do("trained", *training, *out("trained"), *small, *few, "--validation", "0")
    weights = ("--reranker-option", f"weights={OUTPUTS}/trained/weights.safetensors")
    do("run_rrt", *searched, "--index", f"{OUTPUTS}/index_ivf", *out("run_rrt"), "--shortlist", "5")
    do("run_rrt", *reranked, *out("run_rrt"), *weights)

    # Globals first, in float16; then locals of what is reranked, and of what a file asks for.
    lazy = ("extract", *IMAGES, *EXACT, *out("lazy"), "--global-dtype", "float16")
    do("lazy", *lazy, "--rows-per-part", "6", "--locals", "none")
    do("lazy_index", "index", "--stores", f"{OUTPUTS}/lazy", *out("lazy_index"))
    lazy_run = (*out("lazy_run"), "--shortlist", "2")
    do("lazy_run", *searched, "--index", f"{OUTPUTS}/lazy_index", *lazy_run)
    layer = ("extract", *EXACT, *out("lazy"), "--locals-for")
    do("lazy", *layer, f"{OUTPUTS}/lazy_run", "--shortlist", "2")
    do("lazy", *layer, f"{INPUTS}/asked.txt")


def pack() -> None:
    """All below PLACE in one file, without owners."""

    def nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(HERE / "old_outputs.tar.xz", "w:xz") as archive:
        for folder in (INPUTS, OUTPUTS):
            archive.add(folder, folder.name, filter=nobodys)


def main() -> None:
    """Make all below PLACE and bring it here."""
    if (HERE / "commands.json").exists():
        sys.exit(
            f"{HERE} holds an old commit's outputs, which cannot be made again: nothing was done"
        )
    INPUTS.mkdir(parents=True)
    make_inputs()

    do = Commands()
    make_stores(do)
    make_runs(do)

    pack()
    record = {"place": str(PLACE), "outputs": do.made}
    (HERE / "commands.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(PLACE)


if __name__ == "__main__":
    main()
