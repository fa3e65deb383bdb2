"""Binary local descriptors: bits, rotation, the file that carries it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.stats import ortho_group

from pipelines.storage.place import open_place
from pipelines.stores.locals import LocalsFile
from rrt_core.binary import learn_rotation
from schemas import local_descriptors
from schemas.local_descriptors import LocalRow, decoded, encoded
from schemas.manifest import FileEntry


def unit(count: int, width: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def rotation_of(width: int, seed: int = 1) -> np.ndarray:
    return ortho_group.rvs(width, random_state=seed).astype(np.float32)


def part_rows(width: int, counts: dict[int, int]) -> list[LocalRow]:
    rng = np.random.default_rng(5)
    return [
        LocalRow(
            row,
            unit(count, width, row),
            rng.uniform(0, 500, (count, 2)).astype(np.float32),
            rng.integers(0, 3, count).astype(np.uint8),
            np.sort(rng.uniform(size=count).astype(np.float32))[::-1],
        )
        for row, count in counts.items()
    ]


@pytest.mark.parametrize(("width", "stored"), [(128, 16), (1024, 128), (20, 3)])
def test_a_bit_is_the_sign_of_a_rotated_value(width: int, stored: int) -> None:
    given, rotation = unit(300, width), rotation_of(width)
    bits = encoded(given, "binary", rotation)
    assert bits.shape == (300, stored) and bits.dtype == np.uint8
    assert local_descriptors.bytes_a_local(width, "binary") == stored + 13
    rotated = given.astype(np.float64) @ rotation.astype(np.float64)
    for place in range(width):
        np.testing.assert_array_equal(
            bits[:, place // 8] >> (7 - place % 8) & 1, rotated[:, place] >= 0
        )
    np.testing.assert_array_equal(encoded(bits, "binary", rotation), bits)
    back = decoded(bits, rotation)
    assert back.dtype == np.float32 and back.shape == given.shape
    np.testing.assert_allclose(
        back @ rotation, np.where(rotated >= 0, 1, -1) / np.sqrt(width), atol=2e-6
    )
    np.testing.assert_allclose(np.linalg.norm(back.astype(np.float64), axis=1), 1, atol=1e-6)
    # The angle that `decoded` tells: its cosine is the L1 norm over sqrt(W), for normal values
    # sqrt(2 / pi).
    cosine = (back.astype(np.float64) * given).sum(1)
    np.testing.assert_allclose(cosine, np.abs(rotated).sum(1) / np.sqrt(width), atol=1e-5)
    assert abs(cosine.mean() - np.sqrt(2 / np.pi)) < 0.02
    # The similarity of two decoded descriptors is 1 - 2 / W times their Hamming distance.
    hamming = np.unpackbits(bits[:1] ^ bits, axis=1, count=width).sum(1)
    np.testing.assert_allclose(back @ back[0], 1 - 2 * hamming / width, atol=2e-6)


def test_a_file_carries_its_rotation(tmp_path: Path) -> None:
    rows, rotation = part_rows(128, {0: 7, 3: 0, 4: 50}), rotation_of(128)
    path = tmp_path / "part.h5"
    layout = local_descriptors.write_part(str(path), rows, 128, "binary", rotation)
    data = path.read_bytes()
    read = local_descriptors.read_part(str(path))
    with h5py.File(path) as file:
        assert file.attrs["schema"] == "rrt-local/3"
        for name in (*local_descriptors.NAMES, local_descriptors.ROTATION):
            assert file[name].chunks is None
            begin, end = local_descriptors.byte_range(layout, name, 0, len(file[name]))
            np.testing.assert_array_equal(
                local_descriptors.from_bytes(layout, name, data[begin:end]), file[name][()]
            )
            np.testing.assert_array_equal(read[name], file[name][()])
    np.testing.assert_array_equal(read["rotation"], rotation)
    np.testing.assert_array_equal(
        read["descriptor"][7:], encoded(rows[2].descriptors, "binary", rotation)
    )
    already = [
        LocalRow(r.row, encoded(r.descriptors, "binary", rotation), r.xy, r.scale, r.strength)
        for r in rows
    ]
    local_descriptors.write_part(str(tmp_path / "again.h5"), already, 128, "binary", rotation)
    digests = {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("part.h5", "again.h5")
    }
    assert len(digests) == 1
    layout = local_descriptors.write_part(str(path), [], 20, "binary", rotation_of(20))
    assert layout["descriptor"]["shape"] == [0, 3]
    assert decoded(
        local_descriptors.from_bytes(layout, "descriptor", b""), rotation_of(20)
    ).shape == (0, 20)


@pytest.mark.parametrize("url", ["memory://binary-locals", ""])
def test_byte_ranges_of_a_store_are_decoded(tmp_path: Path, url: str) -> None:
    rows, rotation = part_rows(128, {2: 7, 3: 0, 9: 50}), rotation_of(128)
    made = tmp_path / "part.h5"
    layout = local_descriptors.write_part(str(made), rows, 128, "binary", rotation)
    place = open_place(url or str(tmp_path / "store"))
    place.write("local/full/part-00000.h5", made.read_bytes())
    file = LocalsFile(
        place, FileEntry("local/full/part-00000.h5", 3, made.stat().st_size, "", layout)
    )
    span = file.slice(9, 20)
    assert span == (7, 27) and file.slice(4, 20) is None
    (piece,) = file.read([span])
    np.testing.assert_array_equal(
        piece["descriptor"],
        decoded(encoded(rows[2].descriptors[:20], "binary", rotation), rotation),
    )
    np.testing.assert_array_equal(piece["xy"], rows[2].xy[:20])


def test_without_a_right_rotation_nothing_is_written_or_read(tmp_path: Path) -> None:
    given, path = unit(4, 16), str(tmp_path / "part.h5")
    with pytest.raises(ValueError, match="need a rotation"):
        encoded(given, "binary")
    with pytest.raises(ValueError, match="need a rotation"):
        decoded(encoded(given, "binary", rotation_of(16)))
    with pytest.raises(ValueError, match="a rotation of 16 x 16, not None"):
        local_descriptors.write_part(path, [], 16, "binary")
    with pytest.raises(ValueError, match="a rotation of 16 x 16, not \\(8, 8\\)"):
        local_descriptors.write_part(path, [], 16, "binary", rotation_of(8))
    with pytest.raises(ValueError, match="not orthogonal"):
        local_descriptors.write_part(path, [], 16, "binary", 2 * rotation_of(16))
    assert not Path(path).exists()


def test_a_learnt_rotation_keeps_more_than_none() -> None:
    """Values of unequal spread, as descriptors have: signs of the plain values lose most of what
    differs.
    """
    rng = np.random.default_rng(2)
    spread = np.exp(-np.arange(32) / 6)
    mixing = ortho_group.rvs(32, random_state=3)
    samples = (rng.standard_normal((6_000, 32)) * spread @ mixing).astype(np.float32)
    rotation = learn_rotation(samples[:4_000])
    assert rotation.dtype == np.float32
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(32), atol=1e-5)
    np.testing.assert_array_equal(rotation, learn_rotation(samples[:4_000]))
    held_out = samples[4_000:] / np.linalg.norm(samples[4_000:], axis=1, keepdims=True)

    def kept(matrix: np.ndarray) -> float:
        return float(
            (decoded(encoded(held_out, "binary", matrix), matrix) * held_out).sum(1).mean()
        )

    _, axes = np.linalg.eigh(samples[:4_000].T @ samples[:4_000])
    assert kept(rotation) > kept(rotation_of(32)) + 0.01 > kept(axes.astype(np.float32)) + 0.01


def test_few_samples_give_a_rotation_too() -> None:
    for samples in (np.zeros((0, 16), np.float32), np.zeros((2_000, 16), np.float32), unit(10, 16)):
        rotation = learn_rotation(samples)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(16), atol=1e-5)
    with pytest.raises(ValueError, match=r"must be \[n, W\]"):
        learn_rotation(np.zeros(16, np.float32))
