"""The training loop: it learns to match, a resumed run equals an unbroken one, the schedule."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rrt_core.checkpoints import load_checkpoint, save_checkpoint
from rrt_core.training import log as training_log
from rrt_core.training.loop import (
    PairBatch,
    Side,
    TrainingOptions,
    learning_rate,
    logits_of,
    train,
)
from rrt_core.transformer.initialisation import initialise_identity, initialise_matching
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import UserError

CONFIG = ModelConfig(
    global_dim=8, d_model=32, heads=4, feedforward=32, layers=2, scale_binning="fixed"
)


def random_pairs(step: int, count: int = 16, tokens: int = 8) -> PairBatch:
    """A positive's gallery locals are the query's in another order, with noise; a negative's are
    others.
    """
    generator = torch.Generator().manual_seed(step)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(shape, generator=generator), dim=-1)

    label = (torch.arange(count) % 2).float()
    # The last dimensions are empty, as initialise_matching wants them.
    query, other = (F.pad(unit(count, tokens, 24), (0, 8)) for _ in range(2))
    noise = F.pad(0.05 * torch.randn(count, tokens, 24, generator=generator), (0, 8))
    copy = F.normalize(query.flip(1) + noise, dim=-1)
    gallery = torch.where(label[:, None, None] > 0.5, copy, other)
    scales = torch.zeros(count, tokens, dtype=torch.long)
    return PairBatch(
        Side(unit(count, 8), query, scales), Side(unit(count, 8), gallery, scales), label
    )


def new_model() -> RerankingTransformer:
    torch.manual_seed(0)
    model = RerankingTransformer(CONFIG)
    initialise_matching(model)
    return model


def test_learns_to_match(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model()
    options = TrainingOptions(steps=90, lr=1e-3, warmup=10, checkpoint_every=30, evaluate_every=90)
    train(model, random_pairs, lambda _: {"figure": 0.5}, options, tmp_path)
    batch = random_pairs(10_000, 200)
    with torch.no_grad():
        right = (logits_of(model, batch) > 0) == (batch.label > 0.5)
    assert float(right.float().mean()) > 0.9
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert log[0] == "step,name,value" and "90,figure,0.5" in log
    assert sum(",loss," in line for line in log) == 3


def test_resumed_run_equals_unbroken_run(tmp_path: Path) -> None:
    options = TrainingOptions(steps=8, warmup=2, checkpoint_every=2, evaluate_every=100)
    whole, broken = new_model(), new_model()
    train(whole, random_pairs, lambda _: {}, options, tmp_path / "whole")

    def stops(step: int) -> PairBatch:
        if step == 5:
            raise KeyboardInterrupt
        return random_pairs(step)

    with pytest.raises(KeyboardInterrupt):
        train(broken, stops, lambda _: {}, options, tmp_path / "broken")
    again = RerankingTransformer(CONFIG)
    train(again, random_pairs, lambda _: {}, options, tmp_path / "broken")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    options = TrainingOptions(steps=1)
    train(new_model(), random_pairs, lambda _: {}, options, tmp_path)
    other = RerankingTransformer(ModelConfig(global_dim=9, d_model=32, feedforward=32, layers=2))
    with pytest.raises(UserError, match="another model"):
        train(other, random_pairs, lambda _: {}, options, tmp_path)


def test_padding_is_masked() -> None:
    model = new_model()
    batch = random_pairs(0, 4)
    padded = torch.cat([batch.query.local, torch.ones(4, 3, 32)], dim=1)
    mask = (torch.arange(11) >= 8).expand(4, 11)
    query = Side(batch.query.descriptor, padded, torch.zeros(4, 11, dtype=torch.long), mask)
    with torch.no_grad():
        difference = logits_of(model, PairBatch(query, batch.gallery, batch.label)) - logits_of(
            model, batch
        )
    assert float(difference.abs().max()) <= 1e-5


def test_start_looks_into_the_other_image() -> None:
    """Attention of the first layer, by hand: in every head the copy in the other image gets the
    most.
    """
    torch.manual_seed(3)
    model = RerankingTransformer(ModelConfig(global_dim=8, scale_binning="fixed"))
    initialise_matching(model)
    local = F.pad(F.normalize(torch.randn(1, 20, 112), dim=-1), (0, 16))
    scales = torch.zeros(1, 20, dtype=torch.long)
    with torch.no_grad():
        tokens = model.embed(
            torch.zeros(1, 8), local, scales, torch.zeros(1, 8), local.flip(1), scales
        )[0]
        attention = model.layers[0].self_attn
        query, key, _ = F.linear(tokens, attention.in_proj_weight).view(-1, 3, 4, 32).unbind(1)
        weights = torch.einsum("qhd,khd->hqk", query, key)
    copies = weights[:, 2:22].argmax(-1) - 24
    assert torch.equal(copies, torch.arange(19, -1, -1).expand(4, 20))


def test_learning_rate() -> None:
    options = TrainingOptions(steps=100, lr=1.0, warmup=10, final_lr=0.1)
    assert learning_rate(options, 0) == pytest.approx(0.1)
    assert learning_rate(options, 9) == pytest.approx(1.0)
    assert learning_rate(options, 10) == pytest.approx(1.0)
    assert learning_rate(options, 100) == pytest.approx(0.1)
    assert all(learning_rate(options, i) >= learning_rate(options, i + 1) for i in range(10, 100))


def test_saved_weights_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from rrt_core.checkpoints import save_checkpoint; torch.manual_seed(0);"
        "from rrt_core.transformer.model import ModelConfig, RerankingTransformer;"
        "model = RerankingTransformer(ModelConfig(global_dim=8, d_model=32, feedforward=32, "
        "layers=2));"
        "save_checkpoint(sys.argv[1], model, {'b': 1, 'a': [2]})"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], cwd=root, check=True)
    torch.manual_seed(0)
    model = RerankingTransformer(ModelConfig(global_dim=8, d_model=32, feedforward=32, layers=2))
    for name in ("here", "again"):
        save_checkpoint(str(tmp_path / name), model, {"a": [2], "b": 1})
        assert (tmp_path / name).read_bytes() == (tmp_path / "there").read_bytes()
    assert load_checkpoint(str(tmp_path / "here")).notes == {"a": [2], "b": 1}


def test_constant_schedule_is_the_paper_s() -> None:
    options = TrainingOptions(steps=100, lr=1e-4, warmup=0, schedule="constant")
    assert {learning_rate(options, step) for step in range(100)} == {1e-4}


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "int8"), ("schedule", "step"), ("steps", 0), ("lr", -1.0)]
)
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"Training: {name}"):
        TrainingOptions(**{"steps": 5, name: value})  # type: ignore[arg-type]


def test_micro_batches_and_shares_make_the_same_gradients(tmp_path: Path) -> None:
    """A step in pieces of 3 of 16 pairs: weights after four steps to 1e-5."""
    whole, pieces = new_model(), new_model()
    train(whole, random_pairs, lambda _: {}, TrainingOptions(steps=4, warmup=1), tmp_path / "whole")
    train(
        pieces,
        random_pairs,
        lambda _: {},
        TrainingOptions(steps=4, warmup=1, micro_batch=3),
        tmp_path / "pieces",
    )
    for key, value in whole.state_dict().items():
        assert float((value - pieces.state_dict()[key]).abs().max()) <= 1e-5, key


def test_key_biases_stay(tmp_path: Path) -> None:
    model = new_model()
    train(model, random_pairs, lambda _: {}, TrainingOptions(steps=3, warmup=1), tmp_path)
    bias = model.layers[0].self_attn.in_proj_bias
    assert not bias[32:64].any() and bias[:32].any() and bias[64:].any()


def test_best_step_is_chosen_and_survives_resuming(tmp_path: Path) -> None:
    values = {2: 0.5, 4: 0.7, 6: 0.7, 8: 0.6}
    steps, kept = iter([2, 4, 6, 8]), []

    def evaluate(model: RerankingTransformer) -> dict[str, float]:
        return {"val_map": values[next(steps)]}

    for last in (4, 8):  # the second call goes on from the first's checkpoint
        options = TrainingOptions(steps=last, warmup=1, checkpoint_every=2, evaluate_every=2)
        progressed = train(
            new_model(),
            random_pairs,
            evaluate,
            options,
            tmp_path,
            select="val_map",
            keep_best=lambda model, step, figures: kept.append((step, figures["val_map"])),
        )
    assert kept == [(2, 0.5), (4, 0.7)]
    assert (progressed.best_step, progressed.best, progressed.figures) == (
        4,
        {"val_map": 0.7},
        {"val_map": 0.6},
    )


def test_states_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    options = TrainingOptions(steps=1)
    train(new_model(), random_pairs, lambda _: {}, options, tmp_path, identity="one")
    with pytest.raises(UserError, match="on other data or with other options"):
        train(new_model(), random_pairs, lambda _: {}, options, tmp_path, identity="two")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        train(new_model(), random_pairs, lambda _: {}, options, tmp_path, identity="one")


def test_log_is_cut_to_the_checkpoint_and_drawn(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for step in (5, 10, 15):
        training_log.append(
            log, {"step": step, "loss": 1 / step, "val_map": 0.5, "val_map_global": 0.4}
        )
    with log.open("a") as file:
        file.write("20,lo")
    training_log.truncate(log, 10)
    series = training_log.read(log)
    assert series["loss"] == [(5, 0.2), (10, 0.1)] and log.read_text().count("\n") == 7
    training_log.plot(tmp_path / "plot.png", series, chosen=10)
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_identity_start_attends_by_likeness() -> None:
    """Equal unit vectors have the logit `sharpness` in the mean over heads, other vectors in
    proportion.
    """
    model = RerankingTransformer(CONFIG)
    initialise_identity(model, 8.0)
    local = F.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    for layer, length in zip(model.layers, (1.0, 32**0.5), strict=True):
        query, key, _ = (
            F.linear(length * local, layer.self_attn.in_proj_weight).view(2, 3, 4, 8).unbind(1)
        )
        likeness = torch.einsum("qhd,khd->hqk", query, key).mean(0) / 8**0.5
        assert torch.allclose(likeness, 8.0 * local @ local.T, atol=1e-4)


def test_matching_start_needs_room() -> None:
    with pytest.raises(UserError, match="'matching' needs at least 2 heads of 6 dimensions"):
        initialise_matching(
            RerankingTransformer(ModelConfig(global_dim=8, d_model=16, heads=4, layers=1))
        )
