"""Files of other software, made by their own libraries, through our readers; and files that lie."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from scipy.io import savemat

from schemas.errors import UserError
from schemas.importers import Unusable, arrays, checked_locals, delg, ordinals_of, unit_global
from schemas.importers.ames import CVNET_SCALES, AmesFile
from schemas.importers.arrays import FlatLocals, clip_names, open_matrix

PROTO = """
    name: "d.proto" package: "d" syntax: "proto2"
    message_type { name: "Shape" field { name: "dim" number: 1 type: TYPE_INT64
        label: LABEL_REPEATED PACKED } }
    message_type { name: "Floats" field { name: "value" number: 1 type: TYPE_FLOAT
        label: LABEL_REPEATED PACKED } }
    message_type { name: "Whole" field { name: "value" number: 1 type: TYPE_UINT32
        label: LABEL_REPEATED PACKED } }
    message_type { name: "Datum"
      field { name: "shape" number: 1 type: TYPE_MESSAGE type_name: ".d.Shape"
        label: LABEL_OPTIONAL }
      field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: ".d.Floats"
        label: LABEL_OPTIONAL }
      field { name: "uint32_list" number: 3 type: TYPE_MESSAGE type_name: ".d.Whole"
        label: LABEL_OPTIONAL }
      field { name: "news" number: 9 type: TYPE_STRING label: LABEL_OPTIONAL } }
    message_type { name: "Feature"
      field { name: "descriptor" number: 1 type: TYPE_MESSAGE type_name: ".d.Datum"
        label: LABEL_OPTIONAL }
      field { name: "x" number: 2 type: TYPE_FLOAT label: LABEL_OPTIONAL }
      field { name: "y" number: 3 type: TYPE_FLOAT label: LABEL_OPTIONAL }
      field { name: "scale" number: 4 type: TYPE_FLOAT label: LABEL_OPTIONAL }
      field { name: "orientation" number: 5 type: TYPE_FLOAT label: LABEL_OPTIONAL }
      field { name: "strength" number: 6 type: TYPE_FLOAT label: LABEL_OPTIONAL }
      field { name: "news" number: 77 type: TYPE_INT64 label: LABEL_OPTIONAL } }
    message_type { name: "Features"
      field { name: "feature" number: 1 type: TYPE_MESSAGE type_name: ".d.Feature"
        label: LABEL_REPEATED } }
"""


def protos(packed: bool) -> dict[str, Any]:
    """DELG's messages (with two fields of a later version) by protobuf itself, from its .proto's
    text.
    """
    from google.protobuf import text_format

    text = PROTO.replace("PACKED", "options { packed: true }" if packed else "")
    file = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {
        made.name: message_factory.GetMessageClass(find(f"d.{made.name}"))
        for made in file.message_type
    }


KINDS = protos(packed=True)


def datum(values: np.ndarray, kinds: dict[str, Any] = KINDS) -> Any:
    made = kinds["Datum"]()
    made.float_list.value.extend(values.ravel().tolist())
    made.shape.dim.extend(values.shape)
    return made


def features(count: int, dimension: int, kinds: dict[str, Any] = KINDS, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    made = kinds["Features"]()
    for _ in range(count):
        feature = made.feature.add()
        feature.descriptor.CopyFrom(datum(rng.standard_normal(dimension).astype(np.float32), kinds))
        feature.x, feature.y, feature.strength = rng.uniform(0, 500, 3)
        feature.scale, feature.orientation = 1 / delg.SCALES[rng.integers(7)], 0.0
    return made


def assert_same(result: delg.DelgFeatures, message: Any) -> None:
    wanted = [
        np.array(feature.descriptor.float_list.value, np.float32) for feature in message.feature
    ]
    np.testing.assert_array_equal(result.descriptors, np.stack(wanted))
    for name in ("x", "y", "scale", "orientation", "strength"):
        np.testing.assert_array_equal(
            getattr(result, name), np.float32([getattr(f, name) for f in message.feature])
        )


@pytest.mark.parametrize(
    "shape", [(1,), (31,), (32,), (64,), (127,), (128,), (2048,), (40_000,), (3, 4)]
)
def test_globals_are_what_protobuf_wrote(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(delg.parse_global(datum(values).SerializeToString()), values)
    np.testing.assert_array_equal(
        delg.parse_global(datum(values, protos(False)).SerializeToString()), values
    )


def test_whole_numbers_of_a_datum_are_read() -> None:
    made = KINDS["Datum"]()
    made.uint32_list.value.extend([1, 2, 4_000_000_000])
    made.shape.dim.append(3)
    assert delg.parse_global(made.SerializeToString()).tolist() == [1, 2, 4_000_000_000]


@pytest.mark.parametrize("dimension", [1, 20, 31, 32, 40, 128, 512, 5000])
@pytest.mark.parametrize("count", [1, 2, 500])
def test_regular_features_are_viewed(dimension: int, count: int) -> None:
    message = features(min(count, 200_000 // dimension), dimension)
    data = message.SerializeToString()
    assert delg._regular(data) is not None
    assert_same(delg.parse_local(data), message)


def test_any_other_encoding_is_read_too() -> None:
    unpacked = features(5, 16, protos(False))
    assert delg._regular(unpacked.SerializeToString()) is None
    assert_same(delg.parse_local(unpacked.SerializeToString()), unpacked)
    later = features(5, 16)
    later.feature[3].news = 5
    later.feature[1].descriptor.news = "later"
    assert_same(delg.parse_local(later.SerializeToString()), later)
    without = features(4, 16)
    without.feature[2].ClearField("orientation")
    assert_same(delg.parse_local(without.SerializeToString()), without)
    # Fields in another order: the last first, by concatenation, which merges.
    first, second = (
        KINDS["Feature"](strength=3.0, y=2.0),
        KINDS["Feature"](x=1.0, scale=2.0, orientation=0.5),
    )
    second.descriptor.CopyFrom(datum(np.float32([1, 0])))
    body = first.SerializeToString() + second.SerializeToString()
    result = delg.parse_local(bytes([0x0A, len(body)]) + body)
    assert (result.x[0], result.y[0], result.scale[0], result.strength[0]) == (1, 2, 2, 3)
    assert delg.parse_local(b"").descriptors.shape == (0, 0)


def test_every_cut_of_a_file_is_refused_or_a_shorter_file() -> None:
    message = features(3, 12)
    data = message.SerializeToString()
    record = len(data) // 3
    for length in range(len(data)):
        if length % record == 0:
            assert len(delg.parse_local(data[:length]).x) == length // record
        else:
            with pytest.raises(
                Unusable, match=r"truncated|no descriptor|numbers for the shape|not all"
            ):
                delg.parse_local(data[:length])
    whole = datum(np.ones(40, np.float32)).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises(Unusable):
            delg.parse_global(whole[:length])


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for data in (
        features(6, 10).SerializeToString(),
        datum(np.ones(50, np.float32)).SerializeToString(),
    ):
        for _ in range(1500):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), rng.integers(1, 4)):
                damaged[place] = rng.integers(256)
            for parse in (delg.parse_local, delg.parse_global):
                try:
                    parse(bytes(damaged))
                except Unusable as error:
                    assert error.reason and error.error_class


def test_claimed_shapes_are_not_believed() -> None:
    made = datum(np.ones(4, np.float32))
    for dims in ([5], [2, 3], [-2, -2], [2**62, 2**62], [0]):
        del made.shape.dim[:]
        made.shape.dim.extend(dims)
        with pytest.raises(Unusable, match="4 numbers for the shape"):
            delg.parse_global(made.SerializeToString())
    mixed = features(2, 8)
    mixed.feature.add().descriptor.CopyFrom(datum(np.ones(9, np.float32)))
    with pytest.raises(Unusable, match="not all vectors of one dimension"):
        delg.parse_local(mixed.SerializeToString())


def test_delg_features_become_ours() -> None:
    message = features(30, 16)
    result = delg.locals_of(delg.parse_local(message.SerializeToString()), dimension=16, most=10)
    order = np.argsort([-f.strength for f in message.feature], kind="stable")[:10]
    best = [message.feature[i] for i in order]
    np.testing.assert_array_equal(result.xy, np.float32([(f.x, f.y) for f in best]))
    np.testing.assert_array_equal(result.strength, np.float32([f.strength for f in best]))
    np.testing.assert_allclose(
        [delg.SCALES[o] for o in result.scale], [1 / f.scale for f in best], rtol=1e-6
    )
    wanted = np.stack([np.array(f.descriptor.float_list.value, np.float32) for f in best])
    np.testing.assert_allclose(
        result.descriptors, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6
    )
    assert result.scale.dtype == np.uint8 and result.xy.dtype == np.float32


def test_scales_of_either_kind_are_matched_and_others_refused() -> None:
    message = features(7, 4)
    for feature, scale in zip(message.feature, delg.SCALES, strict=True):
        feature.scale, feature.strength = scale, 100 / scale
    parsed = delg.parse_local(message.SerializeToString())
    image = delg.locals_of(parsed, dimension=4, most=7, scale_field="image")
    assert image.scale.tolist() == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(Unusable, match=r"none of 0.25.*--scale-field image"):
        delg.locals_of(parsed, dimension=4, most=7)
    for wrong in (0.0, -1.0, np.nan, np.inf, 0.9):
        with pytest.raises(Unusable):
            ordinals_of(np.array([1.0, wrong]), delg.SCALES)


def test_what_is_unit_keeps_its_bits_and_what_is_none_is_refused() -> None:
    unit = np.random.default_rng(0).standard_normal(512)
    unit = (unit / np.linalg.norm(unit)).astype(np.float32)
    np.testing.assert_array_equal(unit_global(unit, 512), unit)
    np.testing.assert_array_equal(
        unit_global(unit.astype(np.float16), 512), unit.astype(np.float16).astype(np.float32)
    )
    assert np.linalg.norm(unit_global(7 * unit, 512)) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(unit_global(1e30 * unit, 512)) == pytest.approx(1, abs=1e-6)
    for bad, why in (
        (unit[:5], "shape"),
        (unit * np.nan, "not finite"),
        (unit * 0, "zeros"),
        (unit * np.inf, "finite"),
    ):
        with pytest.raises(Unusable, match=why):
            unit_global(bad, 512)
    with pytest.raises(Unusable, match="not finite"):
        checked_locals(
            unit[None] * np.inf, np.zeros((1, 2)), np.zeros(1), np.ones(1), dimension=512, most=5
        )
    with pytest.raises(Unusable, match="all zeros"):
        checked_locals(
            unit[None] * 0, np.zeros((1, 2)), np.zeros(1), np.ones(1), dimension=512, most=5
        )


def ames_block(images: int = 5, tokens: int = 9, dimension: int = 16) -> np.ndarray:
    rng = np.random.default_rng(0)
    block = rng.standard_normal((images, tokens, 5 + dimension)).astype(np.float32)
    block[..., 2], block[..., 3] = 0, 0
    block[..., 4] = -np.sort(-rng.uniform(1, 2, (images, tokens)), axis=1)
    block[2, 4:, :], block[2, 4:, 3] = 0, 1  # padding
    return block


def test_ames_floats(tmp_path: Path) -> None:
    block = ames_block()
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["features"] = block
    opened = AmesFile(str(tmp_path / "a.hdf5"))
    assert (opened.rows, opened.dimension, opened.default_scales()) == (5, 16, (1.0,))
    images = opened.read(1, 4)
    for place, image in enumerate(images):
        result = opened.locals_of(image, 6, (1.0,))
        kept = block[1 + place][block[1 + place][:, 3] == 0][:6]
        np.testing.assert_array_equal(result.xy, kept[:, [1, 0]])
        np.testing.assert_array_equal(result.strength, kept[:, 4])
        wanted = kept[:, 5:] / np.linalg.norm(kept[:, 5:], axis=1, keepdims=True)
        np.testing.assert_allclose(result.descriptors, wanted, atol=1e-6)
    assert len(opened.locals_of(images[1], 6, (1.0,)).scale) == 4
    images[0][3, 2] = 1
    with pytest.raises(Unusable, match="none of 0 .. 0"):
        opened.locals_of(images[0], 6, (1.0,))
    assert opened.locals_of(images[0], 6, CVNET_SCALES).scale[3] == 1
    images[0][3, 3] = 0.5
    with pytest.raises(Unusable, match="masks"):
        opened.locals_of(images[0], 6, CVNET_SCALES)


def test_ames_signs(tmp_path: Path) -> None:
    block = ames_block()
    kind = np.dtype([("metadata", "f4", (5,)), ("descriptor", "u1", (2,))])
    packed = np.zeros(block.shape[:2], kind)
    packed["metadata"] = block[..., :5]
    packed["descriptor"] = np.packbits(block[..., 5:] > 0, axis=-1)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["features"] = packed
    opened = AmesFile(str(tmp_path / "a.hdf5"))
    assert opened.dimension == 16
    result = opened.locals_of(opened.read(0, 1)[0], 100, (1.0,))
    np.testing.assert_array_equal(result.descriptors, np.where(block[0, :, 5:] > 0, 0.25, -0.25))


@pytest.mark.parametrize("layout", ["rows", "columns", "auto"])
def test_matrices_of_all_kinds(tmp_path: Path, layout: str) -> None:
    wanted = np.random.default_rng(0).standard_normal((7, 12)).astype(np.float32)
    stored = wanted.T if layout == "columns" else wanted
    np.save(tmp_path / "m.npy", stored)
    np.savez_compressed(tmp_path / "m.npz", X=stored, other=np.zeros(3))
    savemat(tmp_path / "m.mat", {"X": stored if layout == "rows" else wanted.T, "Q": wanted[:, :2]})
    with h5py.File(tmp_path / "m73.mat", "w", userblock_size=512) as file:
        file["X"] = stored.T if layout == "rows" else wanted
    with open(tmp_path / "m73.mat", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    for name, kind in (("m.npy", "npy"), ("m.npz", "npz"), ("m.mat", "mat"), ("m73.mat", "mat")):
        opened = open_matrix(str(tmp_path / name), kind, "" if kind == "npy" else "X", layout)
        assert (opened.rows, opened.dimension) == (7, 12), name
        np.testing.assert_array_equal(opened.read(2, 6), wanted[2:6])
    # The number of names decides where the layout is left open.
    turned = open_matrix(str(tmp_path / "m.npy"), "npy", "", "auto", 7)
    assert (turned.rows, turned.dimension) == (7, 12)
    other = open_matrix(str(tmp_path / "m.npy"), "npy", "", "auto", 12)
    assert other.rows == 12


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "sprung"), "w")

    np.save(tmp_path / "trap.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "trap.npz", X=np.array([[Trap()]], object))
    for name, kind in (("trap.npy", "npy"), ("trap.npz", "npz")):
        with pytest.raises(UserError, match="cannot be read"):
            open_matrix(str(tmp_path / name), kind)
    assert not (tmp_path / "sprung").exists()


def test_mistakes_of_arrays_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "flat.npy", np.zeros(4))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "empty.npy", np.zeros((3, 0)))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    (tmp_path / "text.mat").write_text("no matrix")
    for name, kind, why in (
        ("absent.npy", "npy", "no such file"),
        ("text.npy", "npy", "cannot be read as .npy"),
        ("flat.npy", "npy", "must be a matrix"),
        ("words.npy", "npy", "matrix of numbers"),
        ("empty.npy", "npy", "without a dimension"),
        ("two.npz", "npz", "--variable"),
        ("text.mat", "mat", "cannot be read as a MATLAB file"),
        ("absent.mat", "mat", "no such file"),
        ("text.npy", "h5", "cannot be read as HDF5"),
    ):
        with pytest.raises(UserError, match=why) as expected_words:
            open_matrix(str(tmp_path / name), kind)
        assert name in str(expected_words.value)


def test_what_cannot_be_mapped_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "m.npz", X=np.zeros((100, 100)))
    monkeypatch.setattr(arrays, "MOST_BYTES", 50_000)
    with pytest.raises(UserError, match="save it as .npy"):
        open_matrix(str(tmp_path / "m.npz"), "npz")


@pytest.mark.parametrize("shape", [(10**7, 10**6), (10**10, 10**10), (2**62, 4), (5, 4)])
def test_headers_that_claim_too_much_are_told(tmp_path: Path, shape: tuple[int, int]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    (tmp_path / "m.npy").write_bytes(header.getvalue() + bytes(64))
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.write(tmp_path / "m.npy", "m.npy")
    for kind in ("npy", "npz"):
        with pytest.raises(UserError, match=f"m.{kind}: it cannot be read as .{kind}"):
            open_matrix(str(tmp_path / f"m.{kind}"), kind)


def test_every_damage_of_an_npz_is_told(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", X=np.random.default_rng(0).standard_normal((9, 7)))
    whole = (tmp_path / "m.npz").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "d.npz").write_bytes(damaged)
        try:
            assert open_matrix(str(tmp_path / "d.npz"), "npz").dimension
        except UserError as error:
            assert "d.npz" in str(error)


def clip_folder(folder: Path, vectors: dict[int, int], metadata: dict[int, int]) -> str:
    """Files of so many rows each."""
    for number, rows in vectors.items():
        np.save(folder / f"img_emb_{number}.npy", np.ones((rows, 4), np.float16))
    for number, rows in metadata.items():
        names = pa.table({"image_path": [f"{number}/{row}.jpg" for row in range(rows)]})
        pq.write_table(names, folder / f"metadata_{number}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("vectors", "metadata", "expected_words"),
    [
        ({0: 2, 1: 2}, {0: 2, 2: 2}, "only one of the two is there for N = 1"),
        (
            {0: 2, 1: 2},
            {0: 1, 1: 3},
            r"metadata_0.parquet: it has 1 rows, but .*img_emb_0.npy has 2",
        ),
        ({0: 2, 1: 2}, {0: 2, 1: 2}, ""),
    ],
)
def test_clip_names_belong_to_their_own_vectors(
    tmp_path: Path, vectors: dict[int, int], metadata: dict[int, int], expected_words: str
) -> None:
    folder = clip_folder(tmp_path, vectors, metadata)
    if not expected_words:
        assert clip_names(folder) == ["0/0.jpg", "0/1.jpg", "1/0.jpg", "1/1.jpg"]
        return
    with pytest.raises(UserError, match=expected_words):
        clip_names(folder)


def test_clip_metadata_that_is_none(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path, {0: 2}, {})
    assert clip_names(folder) is None
    path = tmp_path / "metadata_0.parquet"
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="metadata_0.parquet: it cannot be read as Parquet"):
        clip_names(folder)
    pq.write_table(pa.table({"image_path": ["a.jpg", None]}), path)
    with pytest.raises(UserError, match="row 1 has no image_path"):
        clip_names(folder)
    pq.write_table(pa.table({"url": ["a", "b"]}), path)
    assert clip_names(folder) is None


def test_clip_retrieval(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).standard_normal((23, 8)).astype(np.float16)
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    for number, start in enumerate(range(0, 23, 2)):  # 12 files: 10 must come after 9
        piece = wanted[start : start + 2]
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", piece)
        names = [f"/data/{row}.jpg" for row in range(start, start + len(piece))]
        pq.write_table(
            pa.table({"image_path": names}), tmp_path / "metadata" / f"metadata_{number}.parquet"
        )
    opened = open_matrix(str(tmp_path), "clip")
    np.testing.assert_array_equal(opened.read(0, 23), wanted)
    np.testing.assert_array_equal(opened.read(3, 20), wanted[3:20])
    assert clip_names(str(tmp_path)) == [f"data/{row}.jpg" for row in range(23)]
    (tmp_path / "metadata" / "metadata_3.parquet").unlink()
    with pytest.raises(UserError, match="12 files img_emb_N.npy and 11"):
        open_matrix(str(tmp_path), "clip")


def test_flat_locals_must_fit_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = {
        "descriptor": rng.standard_normal((6, 4)).astype(np.float32),
        "xy": rng.uniform(0, 9, (6, 2)).astype(np.float32),
        "scale": np.zeros(6, np.uint8),
        "strength": np.float32([1, 2, 3, 3, 2, 1]),
        "offset": np.int64([0, 3, 3, 6]),
    }
    for name, array in parts.items():
        np.save(tmp_path / f"{name}.npy", array)
    flat = FlatLocals(str(tmp_path))
    assert (flat.rows, flat.dimension) == (3, 4)
    np.testing.assert_array_equal(flat.locals_of(0, 2, 1).strength, [3, 2])
    in_order = FlatLocals(str(tmp_path), in_order=True)
    np.testing.assert_array_equal(in_order.locals_of(0, 2, 1).strength, [1, 2])
    assert len(flat.locals_of(1, 2, 1).scale) == 0
    for name, array in (
        ("offset", np.int64([0, 7, 6])),
        ("xy", np.zeros((5, 2))),
        ("offset", np.float32([0, 6])),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(UserError, match=name):
            FlatLocals(str(tmp_path))
        np.save(tmp_path / f"{name}.npy", parts[name])
