"""How fast `import delg` reads DELG's files beside the paper repository's reader, same files.

    python benchmarks/speed/import_delg.py --reference RerankingTransformer/ --work FOLDER
        [--pairs 5000] [--repeats 3]

Makes pairs of 2,048-D global and 500 local descriptors of 128 dimensions (some 285 kB a pair) with
protobuf's own serialiser. Both readers are run by one process with one thread, in blocks of 250
pairs that alternate, so that they share the page cache and the machine's drift; every value is
compared.

The reference is RRT_GLD/utils/data/delf, unchanged, but for two things around it: of TensorFlow it
needs only io.gfile.GFile to open files, for which a stand-in gives it Python's `open`; and its
generated message classes are made by today's protobuf (upb, in C) from the schemas that they hold.
Ours is timed in two steps: the files' arrays, which is what the reference gives, and the whole way
of a worker (checks, order, scale numbers, float16). Then the command itself runs.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from pipelines.storage.place import open_place
from schemas.importers import delg, unit_global
from schemas.local_descriptors import encoded

GLOBAL_DIM, LOCALS, LOCAL_DIM = 2048, 500, 128
BLOCK = 250


def make_pairs(folder: Path, pairs: int) -> list[str]:
    """Random unit descriptors in DELG's files, written once."""
    kinds = delg.messages()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06}" for number in range(pairs)]
    rng = np.random.default_rng(0)
    for name in names:
        if (folder / f"{name}.delg_local").exists():
            continue
        datum = kinds["DatumProto"]()
        vector = rng.standard_normal(GLOBAL_DIM).astype(np.float32)
        datum.float_list.value.extend((vector / np.linalg.norm(vector)).tolist())
        datum.shape.dim.append(GLOBAL_DIM)
        (folder / f"{name}.delg_global").write_bytes(datum.SerializeToString())
        features = kinds["DelfFeatures"]()
        vectors = rng.standard_normal((LOCALS, LOCAL_DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        strengths = np.sort(rng.uniform(400, 900, LOCALS))[::-1]
        for vector, strength, place in zip(
            vectors, strengths, rng.uniform(0, 1024, (LOCALS, 2)), strict=True
        ):
            feature = features.feature.add(
                x=place[0], y=place[1], orientation=0.0, strength=strength
            )
            feature.scale = 1 / delg.SCALES[rng.integers(7)]
            feature.descriptor.float_list.value.extend(vector.tolist())
            feature.descriptor.shape.dim.append(LOCAL_DIM)
        (folder / f"{name}.delg_local").write_bytes(features.SerializeToString())
    return names


def generated(path: Path, pool: Any) -> types.ModuleType:
    """The message classes of one of the reference's generated modules, from its schema.

    The modules are of a protoc before 3.19, which today's protobuf refuses to import.
    """
    calls = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.keyword)
    ]
    written = next(
        ast.literal_eval(node.value.args[0]) for node in calls if node.arg == "serialized_pb"
    )  # type: ignore
    file = descriptor_pb2.FileDescriptorProto.FromString(written.encode("latin1"))
    pool.Add(file)
    module = types.ModuleType(path.stem)
    for made in file.message_type:
        kind = message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{made.name}")
        )
        setattr(module, made.name, kind)
    return module


def reference_reader(checkout: Path) -> tuple[types.ModuleType, types.ModuleType]:
    """datum_io and feature_io of the paper's repository.

    A stand-in opens files in TensorFlow's place.
    """
    stand_in = types.ModuleType("tensorflow")
    vars(stand_in)["io"] = types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open))
    sys.modules["tensorflow"] = stand_in
    folder = checkout / "RRT_GLD" / "utils" / "data" / "delf"
    pool = descriptor_pool.DescriptorPool()
    for package in ("delf", "delf.protos"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = []
    for name in ("datum_pb2", "feature_pb2"):
        module = sys.modules[f"delf.protos.{name}"] = generated(
            folder / "protos" / f"{name}.py", pool
        )
        setattr(sys.modules["delf.protos"], name, module)
    for name in ("datum_io", "feature_io"):
        spec = importlib.util.spec_from_file_location(f"delf.{name}", folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[f"delf.{name}"] = importlib.util.module_from_spec(spec)
        setattr(sys.modules["delf"], name, module)
        spec.loader.exec_module(module)
    return sys.modules["delf.datum_io"], sys.modules["delf.feature_io"]


def main() -> None:
    """Make, time, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--reference", type=Path, required=True, help="checkout of the paper's repository"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the files (1.5 GB) and the store"
    )
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of the whole import")
    arguments = parser.parse_args()
    # The command runs in the project's folder, not in this one.
    work = arguments.work.resolve()
    folder = work / f"pairs-{arguments.pairs}"
    names = make_pairs(folder, arguments.pairs)
    datum_io, feature_io = reference_reader(arguments.reference)
    place = open_place(str(folder))

    def theirs(name: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        path = str(folder / name)
        return datum_io.ReadFromFile(f"{path}.delg_global"), feature_io.ReadFromFile(
            f"{path}.delg_local"
        )

    def arrays(name: str) -> tuple[np.ndarray, delg.DelgFeatures]:
        return delg.parse_global(place.read(f"{name}.delg_global")), delg.parse_local(
            place.read(f"{name}.delg_local")
        )

    def whole(name: str) -> np.ndarray:
        vector, features = arrays(name)
        unit_global(vector, GLOBAL_DIM)
        return encoded(
            delg.locals_of(features, dimension=LOCAL_DIM, most=LOCALS).descriptors, "float16"
        )

    def through_protobuf(name: str) -> tuple[np.ndarray, delg.DelgFeatures]:
        """Ours without the view of regular files: what any other encoding takes."""
        kept = delg._regular
        delg._regular = lambda data: None
        try:
            return arrays(name)
        finally:
            delg._regular = kept

    for name in names:  # into the page cache; and every value is compared, by both ways of ours
        vector, (places, scales, descriptors, strength, orientation) = theirs(name)
        for read in (arrays, through_protobuf) if name in names[:200] else (arrays,):
            ours, features = read(name)
            assert np.array_equal(vector, ours) and np.array_equal(
                descriptors, features.descriptors
            )
            assert np.array_equal(places, np.stack([features.y, features.x], 1))
            assert np.array_equal(scales, features.scale) and np.array_equal(
                strength, features.strength
            )
            assert np.array_equal(orientation, features.orientation)
    print(
        f"{len(names):,} pairs, {sum(path.stat().st_size for path in folder.iterdir()) / 1e9:.2f} "
        f"GB: all values equal"
    )

    readers = {"the paper's reader": theirs, "ours, arrays": arrays, "ours, as stored": whole}
    readers["ours, any encoding (protobuf)"] = through_protobuf
    rates: dict[str, list[float]] = {what: [] for what in readers}
    for _ in range(arguments.repeats):
        spent = dict.fromkeys(readers, 0.0)
        for start in range(0, len(names), BLOCK):
            for what, read in readers.items():
                begun = time.perf_counter()
                for name in names[start : start + BLOCK]:
                    read(name)
                spent[what] += time.perf_counter() - begun
        for what, seconds in spent.items():
            rates[what].append(len(names) / seconds)
    first = median(rates["the paper's reader"])
    for what, measured in rates.items():
        rate = median(measured)
        print(
            f"{what:<32}{rate:>8,.0f} pairs/s  ({min(measured):,.0f} .. {max(measured):,.0f})  "
            f"{rate / first:6.1f} x"
        )

    store = work / "store"
    shutil.rmtree(store, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "import",
        "delg",
        str(folder),
        "--out",
        str(store),
    ]
    begun = time.perf_counter()
    subprocess.run([*command, "--workers", str(arguments.workers)], cwd=ROOT, check=True)
    seconds = time.perf_counter() - begun
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["counts"]["succeeded"] == len(names)
    print(
        f"the whole command, {arguments.workers} worker(s): {len(names) / seconds:,.0f} pairs/s "
        f"with its start, "
        f"{len(names) / manifest['wall_seconds']:,.0f} without"
    )
    print_figures(
        {
            "pairs": len(names),
            "all_values_equal": True,  # an unequal one ended the run above
            "pairs_a_second": {what: median(measured) for what, measured in rates.items()},
            "times_the_papers_reader": {
                what: median(measured) / first for what, measured in rates.items()
            },
            "command_workers": arguments.workers,
            "command_pairs_a_second": len(names) / seconds,
            "command_pairs_a_second_without_start": len(names) / manifest["wall_seconds"],
        }
    )


if __name__ == "__main__":
    main()
