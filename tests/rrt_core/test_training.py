"""The training loop: it learns to match, a resumed run equals an unbroken one, the schedule."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rrt_core.checkpoints import load_checkpoint, save_checkpoint
from rrt_core.training import (
    PairBatch,
    Side,
    TrainingOptions,
    initialise_matching,
    learning_rate,
    logits_of,
    train,
)
from rrt_core.transformer import ModelConfig, RerankingTransformer
from schemas.errors import UserError

CONFIG = ModelConfig(global_dim=8, d_model=32, heads=4, feedforward=32, layers=2, scale_binning="fixed")


def random_pairs(step: int, count: int = 16, tokens: int = 8) -> PairBatch:
    """A positive's gallery locals are the query's in another order, with noise; a negative's are others."""
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
    return PairBatch(Side(unit(count, 8), query, scales), Side(unit(count, 8), gallery, scales), label)


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
        difference = logits_of(model, PairBatch(query, batch.gallery, batch.label)) - logits_of(model, batch)
    assert float(difference.abs().max()) <= 1e-5


def test_start_looks_into_the_other_image() -> None:
    """Attention of the first layer, by hand: in every head the copy in the other image gets the most."""
    torch.manual_seed(3)
    model = RerankingTransformer(ModelConfig(global_dim=8, scale_binning="fixed"))
    initialise_matching(model)
    local = F.pad(F.normalize(torch.randn(1, 20, 112), dim=-1), (0, 16))
    scales = torch.zeros(1, 20, dtype=torch.long)
    with torch.no_grad():
        tokens = model.embed(torch.zeros(1, 8), local, scales, torch.zeros(1, 8), local.flip(1), scales)[0]
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
        "from rrt_core.transformer import ModelConfig, RerankingTransformer;"
        "model = RerankingTransformer(ModelConfig(global_dim=8, d_model=32, feedforward=32, layers=2));"
        "save_checkpoint(sys.argv[1], model, {'b': 1, 'a': [2]})"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], cwd=root, check=True)
    torch.manual_seed(0)
    model = RerankingTransformer(ModelConfig(global_dim=8, d_model=32, feedforward=32, layers=2))
    for name in ("here", "again"):
        save_checkpoint(str(tmp_path / name), model, {"a": [2], "b": 1})
        assert (tmp_path / name).read_bytes() == (tmp_path / "there").read_bytes()
    assert load_checkpoint(str(tmp_path / "here")).notes == {"a": [2], "b": 1}
