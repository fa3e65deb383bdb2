"""Row ids: int64 = (base of the store + part number) * 4096 + row, what faiss stores."""

from __future__ import annotations

ROWS_A_PART = 4096  # a row id is (base of the store + part number) * ROWS_A_PART + row
