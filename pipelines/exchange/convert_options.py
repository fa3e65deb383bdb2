"""Options of `convert-delg`."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option

# Published models by the names of their folders, and what attention may look at; spelled out, since
# their own modules import torch.
PUBLISHED = ("r50delg_gld", "r101delg_gld", "r50delg_gldv2clean", "r101delg_gldv2clean")
ATTENTION_INPUTS = ("expanded", "block3")


@dataclass(frozen=True)
class Options(Checked, command="convert-delg"):
    """Options of `convert-delg`."""

    model: str = option("folder of the SavedModel (saved_model.pb, variables/)", positional=True)
    out: str = option("safetensors file to write", positional=True)
    published: str = option(
        "which published model it is, for its threshold; default: by the folder's name",
        "",
        PUBLISHED,
    )
    threshold: float | None = option(
        "least attention of a local descriptor; default: of the published model", None
    )
    attention_input: str = option(
        "what attention looks at; default: found by the check", "", ATTENTION_INPUTS
    )
    local_stride: int = option(
        "pixels between local descriptors, 16 or 32; default: found by the check",
        0,
        least=0,
        most=32,
    )
    check: bool = option(
        "compare with the SavedModel's own output on a picture, and refuse where they differ", True
    )
