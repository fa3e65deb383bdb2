"""Ensembles of a run: rows equal rankings made by hand; what was tuned on a set is refused there;
no model loads.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.engines.settings import RunSettings
from pipelines.evaluate import stage as evaluate
from pipelines.evaluate import table as evaluate_table
from pipelines.evaluate import tune
from pipelines.evaluate.ensembles import read_ensemble, read_scored, replayed
from pipelines.jobs.manifests import read_entries
from pipelines.options import build
from pipelines.report import stage as report
from pipelines.rerank import stage as rerank
from pipelines.results.scores import read_ranking
from pipelines.results.shortlists import read_shortlist_part, shortlist_files
from pipelines.results.truth import Truth
from pipelines.run.stage import run_config
from pipelines.storage.place import open_place
from rrt_core.ensemble import Ensemble, ensemble
from rrt_core.metrics import revisited as metrics
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from schemas.tuned import Tuned

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = RunSettings(workers=1)
SHORTLIST = 8
MEASURES = ("mAP", "mP@1", "mP@5", "mP@10")


@pytest.fixture(scope="module")
def runs(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over one gallery, `validation` and `test`: each asks for five of the ten scenes."""
    root = tmp_path_factory.mktemp("ensembles")
    names = sorted(path.name for path in photographs.iterdir())
    for number, name in enumerate(("validation", "test")):
        queries = [
            {"name": f"{s:02}_0.png", "easy": [3 * s + 1], "hard": [3 * s + 2], "junk": [3 * s]}
            for s in range(5 * number, 5 * number + 5)
        ]
        record = {
            "schema": "rrt-ground-truth/1",
            "name": name,
            "gallery": names,
            "queries": queries,
        }
        (root / f"{name}.json").write_text(json.dumps(record))
        config = {
            "images": str(photographs),
            "ground_truth": str(root / f"{name}.json"),
            "out": str(root / name),
            "extract": {"extractor": "tests.tiny_extractor:TinyExtractor"},
            "rerank": {"reranker": "mutual_nn", "shortlist": SHORTLIST, "queries_per_unit": 2},
        }
        run_config(config, "test", SETTINGS)
    return root


def evaluated(
    root: Path, name: str, asked: str = "", settings: RunSettings = SETTINGS
) -> dict[str, Any]:
    options = {
        "out": f"{root / name}/run",
        "ground_truth": f"{root}/{name}.json",
        "ensemble": asked,
    }
    built = build(evaluate.Options, options, "test")
    evaluate.run(built, settings)
    return evaluate.read_metrics(built.out, built.ensemble)


def tuned(root: Path, result: Path, name: str = "validation", **more: Any) -> Tuned:
    options = {
        "out": f"{root / name}/run",
        "ground_truth": f"{root}/{name}.json",
        "result": str(result),
        **more,
    }
    settings = replace(SETTINGS, overwrite=bool(options.pop("overwrite", False)))
    return tune.run(build(tune.Options, options, "test"), settings)


def raw_scores(run: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(query, record) -> (global score, raw logit), as the files of the scores hold them."""
    place = open_place(f"{run}/scores")
    tables = [
        pq.read_table(io.BytesIO(place.read(entry.name))) for entry in read_entries(place.url)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        (row["query_id"], row["record_id"]): (row["global_score"], row["logit"]) for row in rows
    }


def by_hand(run: Path, truth_file: Path, chosen: Ensemble, protocol: str) -> dict[str, list[str]]:
    """query -> record ids, sorted one by one with Python's own sort."""
    truth, scores = load_ground_truth(str(truth_file)), raw_scores(run)
    places = {f"photographs/{name}": number for number, name in enumerate(truth.gallery)}
    found = {}
    for entry in shortlist_files(str(run)):
        for number, (query, rows) in enumerate(read_shortlist_part(str(run), entry.name)):
            order = rows.column("record_id").to_pylist()
            known = () if protocol == "deploy" else metrics.PROTOCOLS[protocol].junk
            junk = {
                order_
                for order_ in order
                if places[order_] in metrics.positions_of(truth.queries[number], known)
            }
            kept = [record for record in order if record not in junk]

            def final(record: str, query: str = query) -> tuple[float, float]:
                score, logit = scores[query, record]
                return -float(ensemble([score], [logit], chosen.lambda_, chosen.gamma)[0]), -logit

            first = sorted(kept[: chosen.k], key=final)
            found[query] = [
                *first,
                *kept[chosen.k :],
                *[record for record in order if record in junk],
            ]
    return found


def measured(rankings: dict[str, list[str]], truth_file: Path, protocol: str) -> dict[str, float]:
    truth = load_ground_truth(str(truth_file))
    places = {f"photographs/{name}": number for number, name in enumerate(truth.gallery)}
    lists = [
        [places[record] for record in rankings[f"photographs/{query.name}"]]
        for query in truth.queries
    ]
    return metrics.evaluate(lists, truth.queries, protocol).means


@pytest.mark.parametrize("asked", ["0.6,0.3", "0.3,0.2,5", "0.9,0.1,3"])
def test_rows_equal_rankings_made_by_hand(runs: Path, asked: str) -> None:
    lambda_, gamma, *k = map(float, asked.split(","))
    chosen = Ensemble(lambda_, gamma, int(k[0]) if k else SHORTLIST)
    made = evaluated(runs, "test", asked)
    assert made["ensemble"] == {"lambda": lambda_, "gamma": gamma, "k": chosen.k}
    assert list(made["rankings"]) == ["global", "reranked", "deploy", "ensemble", "ensemble_deploy"]
    run, truth = runs / "test" / "run", runs / "test.json"
    for protocol in ("easy", "medium", "hard"):
        reranked_as = "medium" if protocol == "easy" else protocol
        for row, shortlisted_as in (("ensemble", reranked_as), ("ensemble_deploy", "deploy")):
            expected = measured(by_hand(run, truth, chosen, shortlisted_as), truth, protocol)
            ours = made["rankings"][row][protocol]
            assert {name: ours[name] for name in MEASURES} == pytest.approx(expected, abs=1e-12)


def test_the_ends_are_the_reranked_and_the_global_rows(runs: Path) -> None:
    reranked, as_global = (
        evaluated(runs, "test", "0,5")["rankings"],
        evaluated(runs, "test", "1,5")["rankings"],
    )
    assert reranked["ensemble"] == reranked["reranked"]
    assert reranked["ensemble_deploy"] == reranked["deploy"]
    assert as_global["ensemble"] == as_global["ensemble_deploy"] == as_global["global"]
    assert_ends(
        f"{runs}/test/run", f"{runs}/test.json"
    )  # the orders themselves, not their metrics alone


def assert_ends(run: str, truth_file: str) -> None:
    """At lambda 0 each list is as `rerank` ranked it, at lambda 1 as the global scores do, junk
    aside.
    """
    lists = read_scored(run)
    records = {record for item in lists for record in item.record_ids}
    known = Truth(truth_file, [item.query_id for item in lists], sorted(records))
    for protocol in ("deploy", "medium", "hard"):
        truth = None if protocol == "deploy" else known
        rankings = dict(read_ranking(run, protocol))
        for item in lists:
            reranked = replayed(item, protocol, truth, SHORTLIST, Ensemble(0, 9.0, SHORTLIST))
            assert reranked == rankings[item.query_id].column("record_id").to_pylist()
            unchanged = replayed(item, protocol, truth, SHORTLIST, Ensemble(1, 9.0, SHORTLIST))
            junk = set(item.under(protocol, truth, SHORTLIST).junk)
            places = known.positions(item.record_ids)
            kept = [
                record
                for record, place in zip(item.record_ids, places, strict=True)
                if place not in junk
            ]
            assert unchanged[: len(kept)] == kept


def test_the_logits_of_a_cascade_are_those_of_each_list(runs: Path) -> None:
    run = runs / "cascade" / "run"
    shutil.copytree(runs / "test" / "run" / "shortlist", run / "shortlist")
    few = {"query_tokens": 4, "gallery_tokens": 4}
    cascade = {"first": "mutual_nn", "second": "mutual_nn", "keep": 3, "first_options": few}
    options = {
        "queries": f"{runs}/test/queries",
        "out": str(run),
        "ground_truth": f"{runs}/test.json",
    }
    options |= {"reranker": "cascade", "reranker_option": cascade, "shortlist": SHORTLIST}
    rerank.run(build(rerank.Options, options, "test"), SETTINGS)
    assert_ends(str(run), f"{runs}/test.json")


def test_the_plain_evaluation_stays_what_it_is(
    runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = runs / "test" / "run"
    plain = evaluated(runs, "test")
    kept = {
        path: path.read_bytes() for path in (folder / "evaluation").rglob("*") if path.is_file()
    }
    evaluated(runs, "test", "0.25,0.75")
    manifest = json.loads((folder / "evaluation" / "manifest.json").read_text())
    assert sorted(manifest["recipe"]) == ["inputs", "kappas", "schema_version", "stage"]
    assert sorted(manifest["recipe"]["inputs"]) == ["ground_truth", "ranking", "shortlist"]
    assert "ensemble" not in plain and list(plain["rankings"]) == ["global", "reranked", "deploy"]
    assert {
        path: path.read_bytes() for path in (folder / "evaluation").rglob("*") if path.is_file()
    } == kept
    beside = folder / "ensemble" / "lambda=0.25,gamma=0.75,k=8"
    made = {path: path.stat().st_mtime_ns for path in beside.rglob("*") if path.is_file()}
    capfd.readouterr()
    evaluated(runs, "test", "0.25,0.75,8")  # k is what was reranked, said or not
    assert capfd.readouterr().err.count("already made") == 2
    assert {path: path.stat().st_mtime_ns for path in beside.rglob("*") if path.is_file()} == made
    metrics_before = (beside / "metrics.json").read_bytes()
    for name in (
        "manifest.json",
        "metrics.json",
        "done/evaluation.json",
    ):  # as if it had been killed
        (beside / name).unlink()
    evaluated(runs, "test", "0.25,0.75")
    assert (beside / "metrics.json").read_bytes() == metrics_before


def test_tune_finds_the_best_of_its_grid(runs: Path, tmp_path: Path) -> None:
    grid = {"lambda": [0.0, 0.6], "gamma": [0.1, 1.0], "k": [3, 8]}
    found = tuned(runs, tmp_path / "t.json", grid=grid)
    values = {}
    for a, k in enumerate(grid["k"]):
        for b, lambda_ in enumerate(grid["lambda"]):
            for c, gamma in enumerate(grid["gamma"]):
                rows = evaluated(runs, "validation", f"{lambda_},{gamma},{k}")["rankings"]
                values[k, lambda_, gamma] = np.mean(
                    [rows["ensemble"][name]["mAP"] for name in ("medium", "hard")]
                )
                assert found.grid["values"][a][b][c] == pytest.approx(
                    values[k, lambda_, gamma], abs=1e-6
                )
    best = min(values, key=lambda point: (-round(values[point], 12), *point))
    assert (found.best["k"], found.best["lambda"], found.best["gamma"]) == best
    rows = evaluated(runs, "validation")["rankings"]
    for name, row in (("reranked", "reranked"), ("global", "global")):
        for protocol in ("medium", "hard"):
            assert found.values[name][protocol] == pytest.approx(
                rows[row][protocol]["mAP"], abs=1e-12
            )
    assert found.values["best"]["mean"] == pytest.approx(values[best], abs=1e-12)
    assert found.reranker["name"] == "mutual_nn" and found.extractor["name"] == "tiny"


@pytest.mark.parametrize("metric", ["easy", "medium", "hard", "easy+medium"])
def test_each_metric_is_that_of_evaluate(runs: Path, tmp_path: Path, metric: str) -> None:
    found = tuned(
        runs, tmp_path / "t.json", metric=metric, grid={"lambda": [0.7], "gamma": [0.2], "k": [5]}
    )
    rows = evaluated(runs, "validation", "0.7,0.2,5")["rankings"]
    expected = {name: rows["ensemble"][name]["mAP"] for name in metric.split("+")}
    assert found.values["best"] == pytest.approx(
        {**expected, "mean": np.mean(list(expected.values()))}, abs=1e-12
    )


def test_tune_skips_refuses_and_overwrites_as_stages_do(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "t.json"
    tuned(runs, result)
    before, made = result.read_bytes(), result.stat().st_mtime_ns
    tuned(runs, result)
    assert "already made" in capfd.readouterr().err and result.stat().st_mtime_ns == made
    with pytest.raises(UserError, match=r'metric was "medium\+hard", is now "hard"'):
        tuned(runs, result, metric="hard")
    tuned(runs, result, overwrite=True)
    assert result.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    for foreign in (
        b"my notes",
        b'{"a": 1}',
        b"[]",
        before.replace(b"rrt-tuned/1", b"rrt-tuned/9"),
    ):
        result.write_bytes(foreign)
        with pytest.raises(UserError, match=r"t\.json"):
            tuned(runs, result, overwrite=True)
        assert result.read_bytes() == foreign
    with pytest.raises(UserError, match="is a folder"):
        tuned(runs, tmp_path)


def test_what_was_tuned_is_used_elsewhere(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tuned(runs, tmp_path / "t.json")
    made = evaluated(runs, "test", str(tmp_path / "t.json"))
    by_number = evaluated(
        runs, "test", f"{found.best['lambda']},{found.best['gamma']},{found.best['k']}"
    )
    assert made == by_number and made["ensemble"] == found.best
    manifests = list((runs / "test" / "run" / "ensemble").glob("tuned-*/manifest.json"))
    facts = json.loads(manifests[-1].read_text())["facts"]["ensemble"]
    assert facts["tuned"]["ground_truth"]["content"] == found.inputs["ground_truth"]["content"]
    options = tune.Options(
        f"{runs}/validation/run", f"{runs}/validation.json", str(tmp_path / "t.json")
    )
    tune.summarise(options, found)
    printed = capsys.readouterr().out
    assert "global (lambda 1)" in printed and "Of 315 tried on 5 queries, lambda" in printed
    assert f"--ensemble {tmp_path}/t.json" in printed


def test_what_was_tuned_is_refused_where_it_was_tuned(runs: Path, tmp_path: Path) -> None:
    result = tmp_path / "t.json"
    found = tuned(runs, result)
    with pytest.raises(
        UserError, match=r"t\.json was tuned on the ground truth .*validation\.json"
    ):
        evaluated(runs, "validation", str(result))
    other = {"content": "0" * 64}
    disguises = {
        "scores": ("ground_truth",),
        "queries": ("ground_truth", "scores"),
    }
    for told, changed in disguises.items():
        inputs = {
            name: {**entry, **other} if name in changed else entry
            for name, entry in found.inputs.items()
        }
        result.write_bytes(replace(found, inputs=inputs).to_bytes())
        with pytest.raises(
            UserError, match=rf"t\.json was tuned on the {told} of .*/validation/run"
        ):
            evaluated(runs, "validation", str(result))
    assert not list((runs / "validation" / "run").glob("ensemble/tuned-*"))


def test_what_was_tuned_for_other_models_is_refused(runs: Path, tmp_path: Path) -> None:
    result = tmp_path / "t.json"
    found = tuned(runs, result)
    for field, told in (("reranker", "another reranker"), ("extractor", "another extractor")):
        other = {**getattr(found, field), "weights_sha256": "abc"}
        result.write_bytes(replace(found, **{field: other}).to_bytes())
        with pytest.raises(
            UserError, match=rf"{told} than made .*/test/run \(weights_sha256 was \"abc\", is now"
        ):
            evaluated(runs, "test", str(result))
    result.write_bytes(replace(found, best={**found.best, "k": 50}).to_bytes())
    with pytest.raises(UserError, match="the first 50, but only 8 were reranked"):
        evaluated(runs, "test", str(result))
    result.write_bytes(replace(found, best={**found.best, "lambda": 3.0}).to_bytes())
    with pytest.raises(UserError, match="lambda is 3"):
        evaluated(runs, "test", str(result))


def test_scores_that_lack_the_ground_truths_shortlists_are_refused(
    runs: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    shutil.copy(runs / "validation.json", other)
    other.write_text(other.read_text() + "\n")
    with pytest.raises(
        UserError, match=r"not made with the ground truth .*other\.json.*rerank with --ground-truth"
    ):
        tune.run(
            tune.Options(f"{runs}/validation/run", str(other), str(tmp_path / "t.json")), SETTINGS
        )


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("0.5", "'0.5'; it must be lambda,gamma"),
        ("0.5,0.3,20,1", "it must be lambda,gamma"),
        ("1.5,0.3", "lambda is 1.5; it must be between 0 and 1"),
        ("nan,0.3", "lambda is nan"),
        ("0.5,0", "gamma is 0; it must be a finite number above 0"),
        ("0.5,inf", "gamma is inf"),
        ("0.5,0.3,0", "k is 0; it must be at least 1"),
        ("0.5,0.3,2.5", "k is 2.5; it must be a whole number"),
        ("0.5,much", "'0.5,much', and there is no such file"),
        ("no-such.json", "'no-such.json', and there is no such file"),
        ("0.5,0.3,9", "the first 9, but only 8 were reranked"),
    ],
)
def test_malformed_values_get_one_sentence(
    runs: Path, asked: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--out",
        f"{runs}/test/run",
        "--ground-truth",
        f"{runs}/test.json",
        "--ensemble",
        asked,
    ]
    assert main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr().err
    assert told in printed and "Traceback" not in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--metric", "soft"], "--metric is 'soft'; it must be one of easy, medium, hard"),
        (["--metric", "hard+hard"], "--metric is 'hard+hard'"),
        (["--grid", "mu=1"], "there is no 'mu'"),
        (["--grid", "lambda=0,2"], "lambda is 2"),
        (["--grid", "gamma=many"], "gamma is 'many'"),
        (["--grid", "gamma=0,1"], "gamma is 0"),
        (["--grid", "k=2.5"], "k is 2.5"),
        (["--grid", "k=5,9"], "k is 9, but only 8 were reranked"),
    ],
)
def test_malformed_grids_get_one_sentence(
    runs: Path, more: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--out",
        f"{runs}/test/run",
        "--ground-truth",
        f"{runs}/test.json",
        "--result",
        f"{tmp_path}/t.json",
    ]
    assert main(["tune", *arguments, *more]) == 2
    printed = capsys.readouterr().err
    assert told in printed and "Traceback" not in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_metric_where_levels_are_not_known_is_medium() -> None:
    assert tune.read_metric("", ("easy", "medium", "hard")) == ("medium", "hard")
    assert tune.read_metric("", ("medium",)) == ("medium",)
    with pytest.raises(UserError, match="must be one of medium"):
        tune.read_metric("hard", ("medium",))


def test_forms_of_the_option() -> None:
    for asked in (("0.5", "0.3"), build(evaluate.Options, _values([0.5, 0.3]), "yaml").ensemble):
        read = read_ensemble(asked)
        assert (read.lambda_, read.gamma, read.k, read.tuned) == (0.5, 0.3, None, None)
    assert read_ensemble(("0.5", "0.3", "50")).at(100, "run") == Ensemble(0.5, 0.3, 50)
    assert (
        read_ensemble(build(evaluate.Options, _values([0, 1, 50]), "yaml").ensemble).at(100, "r").k
        == 50
    )


def _values(asked: list[float]) -> dict[str, Any]:
    return {"out": "o", "ground_truth": "g", "ensemble": asked}


BLOCKED = """
import sys
for module in ("torch", "rrt_core.transformer", "rrt_core.rerankers.rrt", "rrt_core.rerankers.mutual_nn"):
    sys.modules[module] = None  # importing it fails
import rrt_core.rerankers
def refuse(*_, **__):
    raise AssertionError("a reranker was made")
rrt_core.rerankers.create = refuse
from pipelines.evaluate import stage as evaluate, tune
from pipelines.jobs.do_unit import do_unit
from pipelines.jobs.unit_worker import make_worker
from pipelines.engines.settings import RunSettings
from pipelines.options import build
from pathlib import Path
root, result = sys.argv[1:]
def alone(job, settings):  # in this process, where nothing can be loaded unseen
    if "/ensemble/" in job.output:
        assert do_unit(make_worker(job), job.units[0]), list(Path(job.output, "errors").iterdir())[0].read_text()
evaluate.run_job = alone
values = {"out": f"{root}/test/run", "ground_truth": f"{root}/test.json", "ensemble": "0.45,0.55"}
evaluate.run(build(evaluate.Options, values, "test"), RunSettings())
tune.run(tune.Options(f"{root}/validation/run", f"{root}/validation.json", result), RunSettings())
"""  # noqa: E501


def test_replay_loads_no_model(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, str(runs), str(tmp_path / "t.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics_file = (
        runs / "test" / "run" / "ensemble" / "lambda=0.45,gamma=0.55,k=8" / "metrics.json"
    )
    assert "ensemble" in json.loads(metrics_file.read_text())["rankings"]
    assert (tmp_path / "t.json").exists()


def test_raw_logits_stay_in_scores_and_rankings(runs: Path) -> None:
    run = runs / "test" / "run"
    before = {
        path: path.read_bytes()
        for name in ("scores", "ranking")
        for path in (run / name).rglob("*.parquet")
    }
    evaluated(runs, "test", "0.15,0.35")
    assert {path: path.read_bytes() for path in before} == before
    logits = np.array([logit for _, logit in raw_scores(run).values()])
    assert logits.max() > 1  # a sigmoid never is


def test_a_configuration_asks_for_an_ensemble_and_the_report_shows_it(
    runs: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "images": str(photographs),
        "ground_truth": f"{runs}/test.json",
        "out": str(tmp_path / "whole"),
        "extract": {"extractor": "tests.tiny_extractor:TinyExtractor"},
        "rerank": {"reranker": "mutual_nn", "shortlist": SHORTLIST},
        "evaluate": {"ensemble": [0.5, 0.3, 6]},
    }
    with pytest.raises(UserError, match="lambda is 5"):
        run_config({**config, "evaluate": {"ensemble": [5, 0.3]}}, "test", SETTINGS)
    assert not (tmp_path / "whole").exists()  # told before any work
    results = run_config(config, "test", SETTINGS)
    page = Path(results["report"]).read_text()
    assert "Ensemble (λ 0.5, γ 0.3, k 6)" in page.replace("\u00a0", " ")
    assert "Ensemble, no label knowledge (λ" in page
    assert "0.5 · global + 0.5 · sigmoid(0.3 · logit)" in page
    table = evaluate_table.metrics_table(results["metrics"])
    assert "\nensemble  " in table and table.endswith("ensemble: lambda 0.5, gamma 0.3, k 6")
    other = run_config({**config, "evaluate": {"ensemble": [0.2, 0.3]}}, "test", SETTINGS)["report"]
    plain = run_config({**config, "evaluate": {}}, "test", SETTINGS)["report"]
    assert "Ensemble (λ 0.2" in Path(other).read_text().replace("\u00a0", " ")
    assert "Ensemble" not in Path(plain).read_text()
    assert (
        len({results["report"], other, plain}) == 3 and Path(results["report"]).read_text() == page
    )


def test_the_report_of_an_ensemble_that_is_not_there_names_the_command(runs: Path) -> None:
    options = {
        "out": f"{runs}/test/run",
        "ground_truth": f"{runs}/test.json",
        "ensemble": "0.123,0.3",
    }
    with pytest.raises(UserError, match=r"make it with 'evaluate --ensemble 0\.123,0\.3'"):
        report.run(build(report.Options, options, "test"), SETTINGS)
    with pytest.raises(UserError, match="give --ground-truth too"):
        report.run(build(report.Options, {**options, "ground_truth": ""}, "test"), SETTINGS)
