"""What a processor does is read from the system, or measured by running it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rrt_core.processor import SLOW, bfloat16_slowdown, slow_bfloat16, vector_units


@pytest.mark.parametrize(
    ("line", "units"),
    [
        ("flags\t\t: fpu sse2 avx avx2 fma", "AVX2"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16", "AVX512-BF16"),
        ("flags\t\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "AMX"),
        ("Features\t: fp asimd sve", "SVE"),
        ("Features\t: fp asimd", "NEON"),
        ("model name\t: something", ""),
    ],
)
def test_the_widest_vector_units_are_named(tmp_path: Path, line: str, units: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert vector_units(str(cpuinfo)).split(" (")[0] == units


def test_what_holds_torch_down_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags : avx2 avx512f\n")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert vector_units(str(cpuinfo)) == "AVX512 (ATEN_CPU_CAPABILITY=avx2)"


def test_a_system_without_cpuinfo_has_no_known_units(tmp_path: Path) -> None:
    assert vector_units(str(tmp_path / "absent")) == ""


def test_slow_bfloat16_is_said_where_it_is_measured_to_be_slow() -> None:
    sentence = slow_bfloat16("bfloat16", torch.device("cpu"))
    assert bool(sentence) == (bfloat16_slowdown() >= SLOW)
    assert slow_bfloat16("float32", torch.device("cpu")) == ""
    assert slow_bfloat16("bfloat16", torch.device("cuda")) == ""
