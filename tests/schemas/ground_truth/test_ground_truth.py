"""Ground-truth files: both formats, what is refused, and which records a name means.

RRT_TEST_DATA names the folder with `ground_truth/gnd_*.pkl` (default: `shared` beside the project).
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
from pathlib import Path

import fsspec
import numpy as np
import pytest

from schemas.errors import UserError
from schemas.ground_truth.ground_truth import (
    GroundTruth,
    QueryTruth,
    load_ground_truth,
    save_ground_truth,
)
from schemas.ground_truth.name_matching import Names
from schemas.ground_truth.restricted_pickle import load_plain
from schemas.image_list import make_record_id

BESIDE = Path(__file__).resolve().parents[4]
DATA = Path(os.environ.get("RRT_TEST_DATA", BESIDE / "shared")) / "ground_truth"
GALLERY = ["all_souls_000013", "oxford_002985", "gallery/0001.jpg", "d"]


def revisitop(**changes):
    entry = {"bbx": [10.5, 20, 110.5, 70.25], "easy": [0], "hard": [2, 1], "junk": [3]}
    return {"imlist": list(GALLERY), "qimlist": ["q1"], "gnd": [entry | changes]}


def ours(**changes):
    query = {"name": "q1", "box": [1, 2, 3, 4], "easy": [0], "hard": [], "junk": []} | changes
    return {
        "schema": "rrt-ground-truth/1",
        "name": "t",
        "gallery": list(GALLERY),
        "queries": [query],
    }


def written(tmp_path, content, name="gnd_t.pkl", protocol=2):
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return str(path)


# Reading and writing


@pytest.mark.needs_shared
@pytest.mark.parametrize(("name", "images"), [("roxford5k", 4993), ("rparis6k", 6322)])
def test_the_real_files(name, images, tmp_path):
    path = DATA / f"gnd_{name}.pkl"
    if not path.exists():
        pytest.skip(f"{path.name} is not here (RRT_TEST_DATA)")
    truth = load_ground_truth(str(path))
    assert (truth.name, len(truth.gallery), len(truth.queries), truth.levels) == (
        name,
        images,
        70,
        True,
    )

    raw = load_plain(path.read_bytes(), str(path))
    for query, query_name, entry in zip(truth.queries, raw["qimlist"], raw["gnd"], strict=True):
        assert query.name == query_name
        assert [list(query.easy), list(query.hard), list(query.junk)] == [
            entry[key] for key in ("easy", "hard", "junk")
        ]
        x, y, w, h = query.box
        assert [x, y, x + w, y + h] == pytest.approx(entry["bbx"], abs=1e-6)
        # DELG rounds the corners to pixels: going by width and height changes none
        assert [round(corner) for corner in (x, y, x + w, y + h)] == [
            round(corner) for corner in entry["bbx"]
        ]

    save_ground_truth(truth, str(tmp_path / "t.json"))
    assert load_ground_truth(str(tmp_path / "t.json")) == truth

    records = [make_record_id(name, f"jpg/{image}.jpg") for image in truth.gallery] + [
        "r1m/x/1.jpg"
    ]
    assert list(truth.gallery_positions(records).values()) == list(range(images))
    queries = [make_record_id("queries", f"{query.name}.jpg", query.box) for query in truth.queries]
    assert truth.query_positions(queries) == {record: row for row, record in enumerate(queries)}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_with_arrays(tmp_path, protocol):
    content = revisitop(
        easy=np.array([0], dtype=np.int32),
        hard=np.array([9, 2, 9, 1])[1::2],
        junk=[np.int64(3)],
        bbx=np.arange(1.0, 5.0),
    )
    content["gnd"] = np.array(content["gnd"], dtype=object)
    truth = load_ground_truth(written(tmp_path, content, protocol=protocol))
    assert truth == GroundTruth(
        "t", tuple(GALLERY), (QueryTruth("q1", (1, 2, 2, 2), (0,), (2, 1), (3,)),)
    )


def test_numpy_names_of_before_version_2(tmp_path):
    data = pickle.dumps(revisitop(easy=np.array([0])), 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in data
    assert load_ground_truth(written(tmp_path, data)).queries[0].easy == (0,)


def test_python_2_text_and_arrays():
    # As Python 2 wrote them: str for the raw bytes and the byte order, names below __builtin__.
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'i2'\nI0\nI1\n"
        b"tR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x01\\x00\\xff\\x00'\ntb."
    )
    assert load_plain(data, "old.pkl") == [1, 255]
    assert load_plain(b"(S'caf\\xe9'\nc__builtin__\nset\n((I1\nI2\nltRt.", "old.pkl") == (
        "caf\xe9",
        {1, 2},
    )


def test_arrays_keep_shape_order_and_dtype():
    content = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.array([1, 2], dtype=">i4"),
        "flag": np.bool_(True),
        "half": np.float16(0.5),
        "text": np.array(["a", "bc"]),
        "bytes": b"\xff",
    }
    for protocol in range(6):
        plain = load_plain(pickle.dumps(content, protocol), "x.pkl")
        assert plain == {
            "fortran": [[0, 1, 2], [3, 4, 5]],
            "big": [1, 2],
            "flag": True,
            "half": 0.5,
            "text": ["a", "bc"],
            "bytes": b"\xff",
        }


def test_boxes_may_be_absent(tmp_path):
    content = revisitop()
    del content["gnd"][0]["bbx"]
    assert load_ground_truth(written(tmp_path, content)).queries[0].box is None
    assert load_ground_truth(written(tmp_path, ours(box=None), "t.json")).queries[0].box is None


def test_boxes_become_x_y_w_h_without_noise(tmp_path):
    assert load_ground_truth(written(tmp_path, revisitop())).queries[0].box == (
        10.5,
        20,
        100,
        50.25,
    )
    noisy = revisitop(bbx=[136.5, 34.1, 648.5, 955.7])
    assert load_ground_truth(written(tmp_path, noisy)).queries[0].box == (136.5, 34.1, 512, 921.6)


def test_without_levels(tmp_path):
    content = revisitop()
    content["gnd"] = [{"ok": [0, 2], "junk": [1]}]
    truth = load_ground_truth(written(tmp_path, content))
    assert not truth.levels
    assert truth.queries[0] == QueryTruth("q1", None, (0, 2), (), (1,))
    save_ground_truth(truth, str(tmp_path / "sub" / "t.json"))
    assert load_ground_truth(str(tmp_path / "sub" / "t.json")) == truth


def test_lists_may_hold_gallery_names(tmp_path):
    content = ours(easy=["gallery/0001.jpg", 0], junk=["d"])
    query = load_ground_truth(written(tmp_path, content, "t.json")).queries[0]
    assert (query.easy, query.junk) == ((2, 0), (3,))
    with pytest.raises(UserError, match=r"t\.json names 'nowhere' in easy.*query q1"):
        load_ground_truth(written(tmp_path, ours(easy=["nowhere"]), "t.json"))


def test_any_fsspec_place():
    truth = GroundTruth(
        'naïve "<>\n', ("ä", "b"), (QueryTruth("ö", (0, 0, 1.5, 2), (1,), (), (0,)),)
    )
    save_ground_truth(truth, "memory://ground/t.json")
    assert load_ground_truth("memory://ground/t.json") == truth
    first = fsspec.filesystem("memory").cat("/ground/t.json")
    save_ground_truth(truth, "memory://ground/t.json")
    assert fsspec.filesystem("memory").cat("/ground/t.json") == first


# What is refused


class Carrier:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    def __init__(self):
        self.easy = [0]


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_and_not_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    touch = f"open({str(canary)!r}, 'w').close()"
    attacks = {
        "posix.system": Carrier(os.system, f"touch {canary}"),
        "eval": Carrier(eval, touch),
        "exec": Carrier(exec, touch),
        "Stateful" if protocol > 1 else "copy_reg._reconstructor": Stateful(),
        "OrderedDict": __import__("collections").OrderedDict(a=1),
        "load": Carrier(np.load, str(canary), None, True),
    }
    for name, attack in attacks.items():
        path = written(tmp_path, revisitop(junk=attack), protocol=protocol)
        with pytest.raises(UserError, match=rf"gnd_t\.pkl .*{name}.*refused"):
            load_ground_truth(path)
        assert not canary.exists()
    pickle.loads(
        pickle.dumps(attacks["eval"], protocol)
    )  # the canary does sing where a pickle is trusted
    assert canary.exists()


@pytest.mark.parametrize(
    "data",
    [
        # attributes of what may be called, through dotted names of protocol 4, an instance and a
        # build
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        b"(cnumpy\nndarray\n)o.",
        b"(inumpy\nndarray\n.",
        b"cnumpy\ndtype\n}(S'x'\nI1\nsb.",
        b"cnumpy\ndtype\n(N}(S'x'\nI1\nstb.",
        b"c__builtin__\nset\n(N}(S'add'\nI1\nstb.",
        b"cnumpy\ndtype\n(S'O'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb\x94cnumpy.core.multiarray\nscalar\n(h\x00S'12345678'\ntR.",
        b"cnumpy\ndtype\n(S'i4,O'\nI0\nI1\ntR.",
        b"c_codecs\nencode\n(S'aa'\nS'zip'\ntR.",
        b"P1\n.",  # a persistent id
        b"\x82\x01.",  # a registered extension
        b"",
        b"not a pickle",
        pickle.dumps(revisitop())[:-9],
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_twisted_and_damaged_pickles_are_user_errors(tmp_path, data):
    with pytest.raises(UserError, match=r"gnd_t\.pkl"):
        load_ground_truth(written(tmp_path, data))


def test_stand_ins_stay_as_they_are():
    """A build on a class would change it for all later files."""
    from schemas.ground_truth import restricted_pickle

    before = {name: dict(vars(kind)) for name, kind in restricted_pickle._ALLOWED.items()}
    for module, name in restricted_pickle._ALLOWED:
        for state in (b"}(S'__setstate__'\nI1\nsb.", b"(N}(S'values'\nI1\nstb."):
            with pytest.raises(UserError):
                load_plain(f"c{module}\n{name}\n".encode() + state, "x.pkl")
    assert before == {name: dict(vars(kind)) for name, kind in restricted_pickle._ALLOWED.items()}


@pytest.mark.needs_shared
def test_the_real_files_name_nothing():
    for path in sorted(DATA.glob("gnd_*.pkl")):
        opcodes = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
        assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"easy": [4]}, "4 in easy, no position in a gallery of 4"),
        ({"junk": [-1]}, "-1 in junk"),
        ({"hard": [1.5]}, "1.5 in hard"),
        ({"easy": [True]}, "True in easy"),
        ({"easy": None}, "no list 'easy'"),
        ({"easy": [0], "hard": [0]}, "position 0 in easy and hard"),
        ({"hard": [1, 1]}, "position 1 in hard twice"),
        ({"junk": [0]}, "position 0 in easy and junk"),
        ({"bbx": [1, 2, 3]}, "four finite numbers"),
        ({"bbx": [1, 2, float("nan"), 4]}, "four finite numbers"),
        ({"bbx": [1, 2, float("inf"), 4]}, "four finite numbers"),
        ({"bbx": [1, 2, 10**400, 4]}, "four finite numbers"),
        ({"bbx": "abcd"}, "four finite numbers"),
        ({"bbx": [5, 5, 5, 9]}, "without area"),
    ],
)
def test_mistakes_name_file_and_query(tmp_path, changes, complaint):
    with pytest.raises(UserError, match=rf"gnd_t\.pkl .*{complaint}.*\(query q1\)"):
        load_ground_truth(written(tmp_path, revisitop(**changes)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "is not a dictionary"),
        ({"imlist": [], "qimlist": []}, "no list 'gnd'"),
        (revisitop() | {"qimlist": ["a", "b"]}, "has 2 names in qimlist"),
        (revisitop() | {"gnd": [7]}, "not as many dictionaries"),
        (revisitop() | {"imlist": ["a", "b", "c", "a"]}, "'a' twice in its gallery, at 0 and 3"),
        (revisitop() | {"imlist": ["a", "b", "c", 4]}, "gallery image 3: not a text"),
        (revisitop() | {"imlist": [], "qimlist": [], "gnd": []}, "has no query"),
        (revisitop() | {"qimlist": ["q", "q"], "gnd": revisitop()["gnd"] * 2}, "a query twice"),
    ],
)
def test_mistakes_of_the_whole_name_the_file(tmp_path, content, complaint):
    with pytest.raises(UserError, match=rf"gnd_t\.pkl .*{complaint}"):
        load_ground_truth(written(tmp_path, content))


def test_mistakes_of_json(tmp_path):
    mixed = ours()
    mixed["queries"].append({"name": "q2", "positive": [1]})
    cases = {
        'no "schema"': {"gallery": []},
        "query 0: not a text": ours(name="\ud800"),
        "something else than a dictionary as query 0": ours() | {"queries": [1]},
        "in some queries but not in query 0": mixed,
        "no list 'hard'": {**ours(), "queries": [{"name": "a", "easy": [1]}]},
    }
    for complaint, content in cases.items():
        with pytest.raises(UserError, match=rf"t\.json .*{complaint}"):
            load_ground_truth(written(tmp_path, content, "t.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json is not JSON"):
        load_ground_truth(str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        load_ground_truth(str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"must end in \.json or \.pkl"):
        load_ground_truth(written(tmp_path, b"", "t.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        load_ground_truth("nosuchprotocol://t.json")


# Names


def positions(names, records):
    return GroundTruth("t", tuple(names), ()).gallery_positions(records)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("all_souls_000013", "roxford/all_souls_000013.jpg"),
        ("all_souls_000013", "roxford/jpg/deeper/all_souls_000013.JPG"),
        ("paris_defense_000605", "rparis/defense/paris_defense_000605.jpg#1,2,3.5,4"),
        ("gallery/0001.jpg", "mine/gallery/0001.jpg"),
        ("gallery/0001", "mine/gallery/0001.png"),
        ("gallery/0001.jpg", "mine/0001.jpg"),
        ("mine/gallery/0001.jpg", "mine/gallery/0001.jpg"),
        ("photo.2019", "mine/photo.2019.jpg"),
        ("100%#\x01.jpg", make_record_id("s", "100%#\x01.jpg")),
        ("100%25%23%01.jpg", make_record_id("s", "100%#\x01.jpg")),
        ("bad%FF.jpg", make_record_id("s", b"bad\xff.jpg")),
        ("Zürich ü", "s/Zürich ü.jpg"),
    ],
)
def test_a_name_matches_a_record(name, record):
    assert positions([name], [record]) == {record: 0}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("gallery/0001.jpg", "mine/distractors/0001.jpg"),
        ("all_souls_000013", "r/x_all_souls_000013.jpg"),
        ("photo.2019", "mine/photo.jpg"),
        ("a", "a/b.jpg"),
        ("All_Souls", "r/all_souls.jpg"),
    ],
)
def test_a_name_does_not_match_a_record(name, record):
    assert positions([name], [record]) == {}


def test_the_exact_name_comes_first():
    records = ["s/a.jpg", "s/a.png", "s/sub/a.jpg", "other/sub/a.jpg"]
    assert positions(["a.jpg", "a.png"], records[:3]) == {"s/a.jpg": 0, "s/a.png": 1}
    assert positions(["other/sub/a.jpg"], records[2:]) == {"other/sub/a.jpg": 0}
    # a distractor never takes the place of a listed image, nor that of one that has no record
    assert positions(["x/a", "y/a"], ["s/x/a.jpg", "s/z/a.jpg"]) == {"s/x/a.jpg": 0}


@pytest.mark.parametrize(
    ("names", "records"),
    [
        (["a"], ["s/a.jpg", "s/a.png"]),
        (["a"], ["s/x/a.jpg", "s/y/a.jpg"]),
        (["a.jpg"], ["s/a.jpg", "t/a.jpg"]),
        (["x/a", "y/a"], ["s/a.jpg"]),
        (["a.jpg", "a.png"], ["s/a.webp"]),
        (["a"], ["s/a.jpg#0,0,5,5", "s/a.jpg#5,5,5,5"]),
    ],
)
def test_what_could_be_meant_twice_is_refused(names, records):
    with pytest.raises(UserError, match=r"matches both .* and .*; name .* by its image id"):
        positions(names, records)


def test_queries_of_one_image_differ_by_box():
    queries = (QueryTruth("a", (0, 0, 5, 5), (), (), ()), QueryTruth("a", (5, 5, 5, 5), (), (), ()))
    truth = GroundTruth("t", ("g",), queries)
    assert truth.query_positions(["s/a.jpg#5,5,5.001,5", "s/a.jpg#0,0,5,5"]) == {
        "s/a.jpg#5,5,5.001,5": 1,
        "s/a.jpg#0,0,5,5": 0,
    }
    assert truth.query_positions(["s/a.jpg#1,1,5,5"]) == {}
    with pytest.raises(UserError, match="queries of t"):
        truth.query_positions(["s/a.jpg"])


def test_a_hundred_thousand_distractors():
    names = [f"image_{number:06d}" for number in range(5000)]
    records = [f"r/jpg/{name}.jpg" for name in names] + [
        f"r1m/{n % 1000}/{n}.jpg" for n in range(100_000)
    ]
    assert len(positions(names, records)) == 5000


def test_records_that_no_name_may_mean_change_nothing():
    """Of a gallery the records with possible names alone are matched alike."""
    rng = np.random.default_rng(0)
    folders, stems = ["", "jpg/", "a/jpg/", "b/"], [str(number) for number in range(12)]
    endings = ["", ".jpg", ".JPG", ".dat", "%25"]
    pieces = (folders, stems, endings)
    compared = 0
    for _ in range(300):
        names = {"".join(rng.choice(one) for one in pieces) for _ in range(rng.integers(1, 6))}
        names |= {f"s/{name}" for name in rng.choice(sorted(names), 1)}
        paths = {"".join(rng.choice(one) for one in pieces) for _ in range(20)}
        records = [
            make_record_id(rng.choice(["s", "t"]), path.replace("%25", "%")) for path in paths
        ]
        records += [make_record_id("s", "box.jpg", (1, 2, 3, 4))]
        truth = GroundTruth("t", tuple(sorted(names)), ())
        known = Names(truth.gallery)
        possible = [record for record in records if known.possible(record)]
        try:
            matched = truth.gallery_positions(records)
        except UserError as error:
            with pytest.raises(UserError) as other:
                truth.gallery_positions(possible)
            assert str(other.value) == str(error)
            continue
        assert truth.gallery_positions(possible) == matched
        assert all(position in known.possible(record) for record, position in matched.items())
        compared += len(matched)
    assert compared > 100 and Names(["box"]).possible("s/box.jpg#1,2,3,4") == {0}
