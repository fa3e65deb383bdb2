"""The products variant against an encoder and a position embedding that we did not write; its
checkpoints.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from rrt_core.checkpoints import PRODUCTS, load_checkpoint, save_checkpoint
from rrt_core.products.model import MapMatcher, ProductsConfig, ProductsTransformer, sine_positions
from rrt_core.transformer.model import ModelConfig, RerankingTransformer
from schemas.errors import UserError

SMALL = ProductsConfig(
    map_channels=24, global_dim=12, d_model=16, heads=4, feedforward=32, layers=3
)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random in biases and norms too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def small_model(config: ProductsConfig = SMALL) -> ProductsTransformer:
    torch.manual_seed(1)
    model = ProductsTransformer(config)
    randomised(model)
    return model


class TorchReference(nn.Module):
    """The same sequence through torch.nn.TransformerEncoderLayer."""

    def __init__(self, matcher: MapMatcher, config: ProductsConfig) -> None:
        super().__init__()
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
        self.seg_encoder = nn.Embedding(4, config.d_model)
        self.classifier = nn.Linear(config.d_model, 1)
        self.load_state_dict(matcher.state_dict())

    def forward(self, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        tokens = [self.seg_encoder.weight[0].expand(len(query), 1, -1)]
        for local, row in ((query, 2), (gallery, 3)):
            cells = local.flatten(2).permute(0, 2, 1)
            place = torch.from_numpy(positions_by_numpy(*local.shape[2:], local.shape[1])).float()
            tokens.append(cells + place + self.seg_encoder.weight[row])
            tokens.append(self.seg_encoder.weight[1].expand(len(query), 1, -1))
        result: torch.Tensor = self.classifier(self.encoder(torch.cat(tokens[:-1], 1))[:, 0])[:, 0]
        return result


def positions_by_numpy(rows: int, columns: int, width: int) -> np.ndarray:
    """Entry by entry in float64."""
    half = width // 2
    result = np.zeros((rows, columns, width))
    for y in range(rows):
        for x in range(columns):
            for i in range(half):
                power = 10000.0 ** (2 * (i // 2) / half)
                wave = np.sin if i % 2 == 0 else np.cos
                result[y, x, i] = wave(2.0 * (y + 1) / (rows + 1e-6) / power)
                result[y, x, half + i] = wave(2.0 * (x + 1) / (columns + 1e-6) / power)
    return result.reshape(-1, width)


@pytest.mark.parametrize(("rows", "columns", "width"), [(7, 7, 128), (3, 5, 16), (1, 1, 8)])
def test_positions_equal_the_closed_form(rows: int, columns: int, width: int) -> None:
    result = sine_positions(rows, columns, width)
    assert result.dtype == torch.float32
    assert np.abs(result.numpy() - positions_by_numpy(rows, columns, width)).max() <= 1e-6


@pytest.mark.parametrize("sides", [((7, 7), (7, 7)), ((3, 5), (4, 2)), ((1, 1), (1, 1))], ids=str)
def test_matcher_equals_torch_encoder(sides: tuple) -> None:
    matcher = small_model().matcher
    query, gallery = (torch.randn(4, SMALL.d_model, *side) for side in sides)
    with torch.no_grad():
        expected = TorchReference(matcher, SMALL).eval()(query, gallery)
        result = matcher(query, gallery)
    assert float((result - expected).abs().max()) <= 1e-5
    assert float(expected.std()) > 0.01


def test_maps_to_logits_and_descriptors() -> None:
    model = small_model()
    query, gallery = torch.randn(3, 24, 7, 7), torch.randn(3, 24, 7, 7)
    with torch.no_grad():
        assert torch.equal(
            model(query, gallery),
            model.matcher(model.describe_local(query), model.describe_local(gallery)),
        )
        descriptor = model.describe_global(query)
        expected = query.mean((2, 3)) @ model.remap.weight.T + model.remap.bias
    assert torch.allclose(descriptor, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)
    assert model.describe_local(query).shape == (3, 16, 7, 7)
    assert float((model(query, gallery) - model(gallery, query)).detach().abs().max()) > 1e-3


def test_names_and_shapes_are_the_papers() -> None:
    """Parameters of MatchERT of RRT_SOP, and the two maps of base_model.py."""
    model = ProductsTransformer(ProductsConfig())
    assert sum(parameter.numel() for parameter in model.matcher.parameters()) == 1_979_777
    names = set(model.state_dict())
    assert {"remap.weight", "remap.bias", "remap_local.weight", "remap_local.bias"} <= names
    assert {
        "matcher.seg_encoder.weight",
        "matcher.classifier.weight",
        "matcher.classifier.bias",
    } <= names
    assert "matcher.encoder.layers.5.self_attn.in_proj_weight" in names
    assert len(names) == 4 + 3 + 6 * 12
    assert model.state_dict()["remap_local.weight"].shape == (128, 2048, 1, 1)
    tokens = model.matcher.embed(torch.zeros(1, 128, 7, 7), torch.zeros(1, 128, 7, 7))
    assert tokens.shape == (1, 100, 128)


@pytest.mark.parametrize(
    "change", [{"layers": 0}, {"heads": 3}, {"map_channels": 1.5}, {"d_model": 6, "heads": 2}]
)
def test_bad_config(change: dict) -> None:
    with pytest.raises(UserError, match="Reranker configuration"):
        dataclasses.replace(SMALL, **change)


def test_own_checkpoint_with_its_backbone(tmp_path: Path) -> None:
    model, path = small_model(), str(tmp_path / "own.safetensors")
    backbone = {"stem.weight": torch.randn(2, 3)}
    sha256 = save_checkpoint(path, model, {"mode": "joint"}, backbone)
    result = load_checkpoint(path, variant=PRODUCTS)
    assert (
        result.model.config == SMALL
        and result.notes == {"mode": "joint"}
        and result.sha256 == sha256
    )
    assert not result.model.training
    assert list(result.backbone) == ["stem.weight"] and torch.equal(
        result.backbone["stem.weight"], backbone["stem.weight"]
    )
    maps = torch.randn(2, 24, 3, 3)
    with torch.no_grad():
        assert torch.equal(result.model(maps, maps), model(maps, maps))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_paper_checkpoint(tmp_path: Path, prefix: str) -> None:
    """The layout of RRT_SOP's experiment_rerank.py: backbone, classification layer and matcher in
    one state dict.
    """
    model = small_model()
    resnet = {
        "conv1.weight": torch.randn(4, 3, 7, 7),
        "layer1.0.bn1.num_batches_tracked": torch.tensor(7),
    }
    layer = {"classifier.weight": torch.zeros(9, 12), "classifier.bias": torch.zeros(9)}
    state = {
        prefix + key: value for key, value in {**resnet, **model.state_dict(), **layer}.items()
    }
    path = tmp_path / "paper.pt"
    torch.save({"state": state, "optim": {"state": {}}, "scheduler": {}}, path)
    result = load_checkpoint(str(path), variant=PRODUCTS)
    assert result.model.config == dataclasses.replace(SMALL, backbone="timm:resnet50")
    assert set(result.backbone) == set(resnet)
    maps = torch.randn(2, 24, 3, 3)
    with torch.no_grad():
        assert torch.equal(result.model(maps, maps), model(maps, maps))


def test_variants_are_not_mistaken(tmp_path: Path) -> None:
    products, landmarks = str(tmp_path / "products"), str(tmp_path / "landmarks")
    save_checkpoint(products, small_model())
    save_checkpoint(landmarks, RerankingTransformer(ModelConfig(24, 16, 4, 32, 2)))
    with pytest.raises(UserError, match="for products; weights for landmarks"):
        load_checkpoint(products)
    with pytest.raises(UserError, match="for landmarks; weights for products"):
        load_checkpoint(landmarks, variant=PRODUCTS)


def test_landmark_files_from_before_there_were_variants(tmp_path: Path) -> None:
    model = RerankingTransformer(ModelConfig(24, 16, 4, 32, 2))
    metadata = {
        "format": "rrt-weights/1",
        "config": json.dumps(dataclasses.asdict(model.config)),
        "notes": "{}",
    }
    path = tmp_path / "old.safetensors"
    path.write_bytes(safetensors.torch.save(model.state_dict(), metadata))
    assert load_checkpoint(str(path)).model.config == model.config


def test_broken_products_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = small_model().state_dict()
    torch.save(
        {"state": {key: value for key, value in state.items() if key != "remap_local.bias"}}, path
    )
    with pytest.raises(UserError, match=r"1 tensors are missing, such as remap_local\.bias"):
        load_checkpoint(str(path), variant=PRODUCTS)
    torch.save({"state": {"matcher.seg_encoder.weight": torch.zeros(4, 16)}}, path)
    with pytest.raises(
        UserError, match=r"remap_local\.weight is missing; .* no model for products"
    ):
        load_checkpoint(str(path), variant=PRODUCTS)


@pytest.mark.skipif(
    "RRT_REFERENCE" not in os.environ, reason="RRT_REFERENCE names no checkout of the paper's code"
)
def test_parity_with_the_papers_code() -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "parity" / "rrt_parity.py"
    command = [
        sys.executable,
        str(script),
        "--reference",
        os.environ["RRT_REFERENCE"],
        "--pairs",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal" in done.stdout
