"""The model against an encoder that we did not write, its scale tables, and checkpoints."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rrt_core.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from rrt_core.transformer.model import DELG_SCALES, ModelConfig, RerankingTransformer, bin_scales
from schemas.errors import UserError

SMALL = ModelConfig(
    global_dim=24, d_model=16, heads=4, feedforward=32, layers=3, scale_binning="fixed"
)


def random_model(config: ModelConfig, seed: int = 0) -> RerankingTransformer:
    """Random in biases and norms too, which start at 0 and 1 and would hide mistakes."""
    torch.manual_seed(seed)
    model = RerankingTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_side(
    config: ModelConfig, batch: int, slots: int, counts: list[int]
) -> tuple[torch.Tensor, ...]:
    mask = torch.arange(slots)[None] >= torch.tensor(counts)[:, None]
    local = torch.randn(batch, slots, config.d_model)
    return torch.randn(batch, config.global_dim), local, mask, torch.randint(0, 7, (batch, slots))


class TorchReference(nn.Module):
    """The same sequence through torch.nn.TransformerEncoderLayer."""

    def __init__(self, model: RerankingTransformer) -> None:
        super().__init__()
        config = model.config
        layer = nn.TransformerEncoderLayer(
            config.d_model,
            config.heads,
            config.feedforward,
            0.0,
            "relu",
            batch_first=True,
            norm_first=False,
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.remap = nn.Linear(config.global_dim, config.d_model)
        self.scale_encoder = nn.Embedding(7, config.d_model)
        self.seg_encoder = nn.Embedding(6, config.d_model)
        self.classifier = nn.Linear(config.d_model, 1)
        self.load_state_dict(model.state_dict())

    def forward(self, qg, ql, qm, qs, gg, gl, gm, gs):  # type: ignore[no-untyped-def]
        def segment(index, length):  # type: ignore[no-untyped-def]
            return self.seg_encoder(torch.full((len(qg), length), index))

        tokens = [
            segment(2, 1),
            F.normalize(self.remap(qg), dim=-1)[:, None] + segment(4, 1),
            F.normalize(ql, dim=-1) + self.scale_encoder(qs) + segment(0, ql.shape[1]),
            segment(3, 1),
            F.normalize(self.remap(gg), dim=-1)[:, None] + segment(5, 1),
            F.normalize(gl, dim=-1) + self.scale_encoder(gs) + segment(1, gl.shape[1]),
        ]
        real = torch.zeros(len(qg), 2, dtype=torch.bool)
        mask = torch.cat([real, qm, real, gm], dim=1)
        return self.classifier(self.encoder(torch.cat(tokens, 1), src_key_padding_mask=mask)[:, 0])[
            :, 0
        ]


@pytest.mark.parametrize("config", [SMALL, ModelConfig(global_dim=40)], ids=["small", "paper"])
def test_plain_forward_equals_torch_encoder(config: ModelConfig) -> None:
    model = random_model(config)
    query = random_side(config, 5, 12, [12, 7, 1, 0, 0])
    gallery = random_side(config, 5, 9, [9, 3, 1, 9, 0])
    with torch.no_grad():
        expected = TorchReference(model).eval()(*query, *gallery)
        result = model(*query, *gallery)
    assert float((result - expected).abs().max()) <= 1e-5
    assert float(expected.std()) > 0.01


def test_classify_equals_plain_forward_with_padding() -> None:
    model = random_model(SMALL)
    query, gallery = random_side(SMALL, 3, 6, [6, 4, 0]), random_side(SMALL, 3, 5, [5, 0, 2])
    with torch.no_grad():
        tokens = model.embed(query[0], query[1], query[3], gallery[0], gallery[1], gallery[3])
        always = torch.ones(3, 2, dtype=torch.bool)
        visible = torch.cat([always, ~query[2], always, ~gallery[2]], dim=1)
        difference = model.classify(tokens, visible) - model(*query, *gallery)
    assert float(difference.abs().max()) <= 1e-5


def test_padding_does_not_change_the_logit() -> None:
    model = random_model(SMALL)
    qg, ql, _, qs = random_side(SMALL, 1, 8, [8])
    gg, gl, gm, gs = random_side(SMALL, 1, 4, [4])
    mask = torch.arange(8)[None] >= 5
    with torch.no_grad():
        cut = model(qg, ql[:, :5], mask[:, :5], qs[:, :5], gg, gl, gm, gs)
        padded = model(qg, ql, mask, qs, gg, gl, gm, gs)
    assert float((cut - padded).abs().max()) <= 1e-5


def test_not_symmetric() -> None:
    model = random_model(SMALL)
    query, gallery = random_side(SMALL, 1, 5, [5]), random_side(SMALL, 1, 5, [5])
    with torch.no_grad():
        assert float((model(*query, *gallery) - model(*gallery, *query)).abs()) > 1e-3


def test_size_and_names_are_the_papers() -> None:
    """2,243,201 parameters: training log of the paper's repository."""
    model = RerankingTransformer(ModelConfig(global_dim=2048))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_243_201
    expected = {"remap.weight", "remap.bias", "scale_encoder.weight", "seg_encoder.weight"}
    expected |= {"classifier.weight", "classifier.bias"}
    parts = ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
    for i in range(6):
        for part in parts:
            join = "_" if part.endswith("in_proj") else "."
            expected |= {f"encoder.layers.{i}.{part}{join}{kind}" for kind in ("weight", "bias")}
    assert set(model.state_dict()) == expected
    assert model.state_dict()["encoder.layers.5.self_attn.in_proj_weight"].shape == (384, 128)
    assert model.scale_encoder.weight.shape == (7, 128)
    assert model.seg_encoder.weight.shape == (6, 128)


def test_scale_tables() -> None:
    assert bin_scales(DELG_SCALES, "rrt_legacy").tolist() == [6, 4, 4, 2, 2, 0, 0]
    assert bin_scales(DELG_SCALES, "fixed").tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert bin_scales(DELG_SCALES, "fixed").dtype == np.int64
    # The rounding of the stored number must not matter, which is the trap of the original look-up.
    for cast in (np.float16, np.float32, np.float64):
        scales = tuple(float(cast(scale)) for scale in DELG_SCALES)
        assert bin_scales(scales, "rrt_legacy").tolist() == [6, 4, 4, 2, 2, 0, 0]
    # Nearest in the logarithm: sqrt(.5 * .70710677) = .5946 is the border, not their mean .6036.
    assert bin_scales((0.59, 0.6, 100.0, 0.001), "fixed").tolist() == [4, 3, 0, 6]
    assert bin_scales((), "fixed").shape == (0,)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(UserError, match="scale"):
        bin_scales((1.0, scale), "fixed")


def test_unknown_table() -> None:
    with pytest.raises(UserError, match="rrt_legacy, fixed"):
        bin_scales((1.0,), "legacy")
    with pytest.raises(UserError, match="rrt_legacy, fixed"):
        ModelConfig(scale_binning="legacy")


@pytest.mark.parametrize("change", [{"layers": 0}, {"heads": 3}, {"global_dim": 1.5}])
def test_bad_config(change: dict) -> None:
    with pytest.raises(UserError, match="Reranker configuration"):
        ModelConfig(**change)


def same_logits(result: Checkpoint, model: RerankingTransformer) -> bool:
    query = random_side(model.config, 2, 4, [4, 4])
    with torch.no_grad():
        return torch.equal(result.model(*query, *query), model(*query, *query))


def test_own_checkpoint_round_trip(tmp_path: Path) -> None:
    model = random_model(SMALL)
    path = tmp_path / "own.safetensors"
    sha256 = save_checkpoint(str(path), model, {"steps": 12})
    result = load_checkpoint(str(path))
    assert result.model.config == SMALL and result.notes == {"steps": 12}
    assert result.sha256 == sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not result.model.training
    assert same_logits(result, model)
    assert load_checkpoint(str(path), "rrt_legacy").model.config.scale_binning == "rrt_legacy"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old pickle"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_paper_checkpoint(tmp_path: Path, prefix: str, zipped: bool) -> None:
    model = random_model(ModelConfig(global_dim=24, feedforward=32, layers=2))
    path = tmp_path / "paper.pt"
    state = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(
        {"state": state, "optim": {"state": {}}}, path, _use_new_zipfile_serialization=zipped
    )
    result = load_checkpoint(str(path))
    assert result.model.config == model.config and result.model.config.scale_binning == "rrt_legacy"
    assert same_logits(result, model)


def test_paper_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save({"state": {"remap.weight": Path("x")}}, path)
    with pytest.raises(UserError, match=r"code.pt are neither"):
        load_checkpoint(str(path))


def test_broken_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    model = RerankingTransformer(ModelConfig(global_dim=24, feedforward=32, layers=2))
    state = model.state_dict()
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(str(path))
    path.write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="neither"):
        load_checkpoint(str(path))
    torch.save({"weights": state}, path)
    with pytest.raises(UserError, match="'state'"):
        load_checkpoint(str(path))
    torch.save(
        {"state": {key: value for key, value in state.items() if key != "classifier.bias"}}, path
    )
    with pytest.raises(UserError, match="classifier.bias"):
        load_checkpoint(str(path))
    torch.save({"state": state | {"extra": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="extra"):
        load_checkpoint(str(path))
    torch.save({"state": state | {"classifier.weight": torch.zeros(1, 64)}}, path)
    with pytest.raises(UserError, match=r"classifier.weight has the shape \(1, 64\)"):
        load_checkpoint(str(path))
    torch.save({"state": {"remap.weight": torch.zeros(8, 24)}}, path)
    with pytest.raises(UserError, match="linear1.weight is missing"):
        load_checkpoint(str(path))


def test_broken_own_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_checkpoint(str(path), RerankingTransformer(SMALL))
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_checkpoint(str(path))
    path.write_bytes(data.replace(b"rrt-weights/1", b"rrt-weights/9"))
    with pytest.raises(UserError, match="rrt-weights/1"):
        load_checkpoint(str(path))
    path.write_bytes(data.replace(b"feedforward", b"feedbackward"[:11]))
    with pytest.raises(UserError, match="configuration"):
        load_checkpoint(str(path))
