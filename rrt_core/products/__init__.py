"""The Reranking Transformer for products: its model, crops, training and evaluation."""

from typing import TYPE_CHECKING

from rrt_core.lazy import lazily

if TYPE_CHECKING:
    from rrt_core.products.backbone import Backbone, create_backbone
    from rrt_core.products.crops import CropOptions, CropReader
    from rrt_core.products.model import ProductsConfig, ProductsTransformer
    from rrt_core.products.training import ProductsNetwork, ProductsOptions, train

__all__ = [
    "Backbone",
    "CropOptions",
    "CropReader",
    "ProductsConfig",
    "ProductsNetwork",
    "ProductsOptions",
    "ProductsTransformer",
    "create_backbone",
    "train",
]
__getattr__ = lazily(
    __name__,
    {
        "backbone": ["Backbone", "create_backbone"],
        "crops": ["CropOptions", "CropReader"],
        "model": ["ProductsConfig", "ProductsTransformer"],
        "training": ["ProductsNetwork", "ProductsOptions", "train"],
    },
)
