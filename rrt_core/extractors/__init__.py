"""The contract of extractors, and the registry that makes one by name.

An extractor turns decoded images into one global descriptor and many local descriptors each. A new
one is one file in this folder and one line in `REGISTRY`; a user's own class is named
`package.module:Class` and needs neither. Importing this package imports no network library: that
happens when an extractor is made.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrt_core.extractors.options import FORMER
from rrt_core.images import Image
from schemas.errors import UserError
from schemas.registry import Registry


def identity_of(extractor: Extractor) -> dict[str, Any]:
    """What of an extractor goes into a recipe."""
    return {
        "name": extractor.name,
        "revision": extractor.revision,
        "weights_sha256": extractor.weights_sha256,
        "global_dim": extractor.global_dim,
        "local_dim": extractor.local_dim,
        "scales": list(extractor.scales),
        "config": extractor.config,
    }


REGISTRY = Registry(
    "extractor",
    "rrt_pipelines.extractors",
    {
        "delg": "rrt_core.extractors.delg.extractor:Delg",
        "efficientnet": "rrt_core.extractors.efficientnet.extractor:EfficientNet",
        "rootsift": "rrt_core.extractors.rootsift:RootSift",
    },
)
# Of many networks each, named "family:NAME"; the NAME is the option `model` of the class.
_FAMILIES = {"timm": "rrt_core.extractors.timm.extractor:Timm"}


@dataclass
class Description:
    """What an extractor gives of one image. n may be 0: described, without any local.

    global_descriptor  float32 [D], L2 norm 1
    descriptors        float32 [n, L], L2 norm 1, in an order of which every prefix serves: the
                       strongest first, or spread over the picture
    xy                 float32 [n, 2], pixels of the upright original (not of the crop): x in [0,
                       width], y in [0, height]
    scale              uint8 [n], ordinal in `Extractor.scales`
    strength           float32 [n]; comparable within one extractor only
    """

    global_descriptor: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.float32]
    xy: npt.NDArray[np.float32]
    scale: npt.NDArray[np.uint8]
    strength: npt.NDArray[np.float32]


@dataclass
class Failure:
    """Why one image has no description: a sentence for a person, a word to count by."""

    reason: str
    error_class: str


class Extractor(ABC):
    """Images in, descriptions out.

    name           as in the registry
    revision       raised by hand whenever the same options and weights give other bytes than before
    global_dim     D of `Description.global_descriptor`
    local_dim      L of `Description.descriptors`
    scales         image scale of each ordinal in `Description.scale`, relative to the largest
    weights_sha256 of everything learned that goes into the bytes; "" where nothing is
    config         every option that changes bytes, as JSON values; never paths or threads, nor
                   batch sizes, but where bits depend on them (on a GPU)
    largest_side   longest side of the largest copy that it looks at, pixels, of a whole picture;
                   JPEGs may then be decoded at a half, a quarter or an eighth, never below twice
                   this side. None: it must see every pixel
    batch          images that are best given to one call of `describe`
    """

    name: str
    revision: int
    global_dim: int
    local_dim: int
    scales: tuple[float, ...]
    weights_sha256: str
    config: dict[str, Any]
    largest_side: int | None = None
    batch: int = 4

    @abstractmethod
    def describe(self, images: Sequence[Image]) -> list[Description | Failure]:
        """One answer for each image, in order.

        The same image gives the same bytes alone, among others and in any place, at one setting of
        threads. Threads are the caller's to set (torch.set_num_threads, cv2.setNumThreads); no
        extractor touches them.
        """

    def describe_globals(self, images: Sequence[Image]) -> list[Description | Failure]:
        """As `describe`, the same globals to the bit, with no local descriptors.

        It is for stores whose locals come later.

        Extractors that can leave out work override it.
        """
        return [without_locals(answer, self.local_dim) for answer in self.describe(images)]


def without_locals(answer: Description | Failure, local_dim: int) -> Description | Failure:
    """The description with its global alone."""
    return (
        answer if isinstance(answer, Failure) else global_only(answer.global_descriptor, local_dim)
    )


def global_only(descriptor: npt.NDArray[np.float32], local_dim: int) -> Description:
    """A description with this global, float32 [D], and no local descriptors."""
    return Description(
        global_descriptor=descriptor,
        descriptors=np.zeros((0, local_dim), np.float32),
        xy=np.zeros((0, 2), np.float32),
        scale=np.zeros(0, np.uint8),
        strength=np.zeros(0, np.float32),
    )


def is_known(name: str) -> bool:
    """Whether a name is registered, or of a family ("timm:NAME"): no user's own class."""
    return REGISTRY.target(name) is not None or name.partition(":")[0] in _FAMILIES


def create(name: str, **options: Any) -> Extractor:
    """Make an extractor: a registered name, "timm:NAME", or a user's "package.module:Class".

    Raises UserError for an unknown name, an unknown option, a value the extractor refuses, or a
    class that does not keep the contract.
    """
    made, given = _class(name)
    REGISTRY.check_options(name, made, options, given)
    extractor: Extractor = made(**options, **given)
    REGISTRY.check_attributes(extractor, Extractor.__annotations__)
    return extractor


def options_of_store(
    name: str, options: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Options for more images of a store whose extractor has the configuration `config`.

    Where `order` or `execution` is not given it is the store's; stores of earlier versions keep the
    strongest locals first. Raises UserError for an unknown name.
    """
    made, _ = _class(name)
    known, added = inspect.signature(made).parameters, dict[str, Any]()
    whole = {**config.get("global", {}), **config}  # of an extractor whose global is another's
    for option, usual in FORMER.items():
        if (
            option in known
            and option not in options
            and whole.get(option, usual) != (known[option].default)
        ):
            added[option] = whole.get(option, usual)
    return {**options, **added}


def comparable(
    extractor: Mapping[str, Any], but: Collection[str] = tuple(FORMER)
) -> dict[str, Any]:
    """Of an extractor's identity, or a part of it, what its descriptors must share to be compared.

    All but the order of the locals, and what runs the network, whose descriptors agree to 1e-4.
    """
    return {
        key: comparable(value, but) if isinstance(value, Mapping) else value
        for key, value in extractor.items()
        if key not in but
    }


def _class(name: str) -> tuple[Any, dict[str, str]]:
    """The class of a name, and the options that are in the name. Raises UserError."""
    family, _, model = name.partition(":")
    given = {"model": model} if family in _FAMILIES and model else {}
    target = _FAMILIES[family] if given else REGISTRY.target(name) or name

    if ":" not in target or (family in _FAMILIES and not given):
        known = sorted(REGISTRY.names()) + [f"{family}:NAME" for family in sorted(_FAMILIES)]
        raise UserError(
            f"There is no extractor {name!r}: choose {' or '.join(known)}, or name a class of your "
            "own as package.module:Class."
        )
    return REGISTRY.load_class(name, Extractor, target), given
