"""Writes the table of rooms into docs/architecture.md: ``python docs/figures/rooms.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support.imports import import_graph, rooms_table  # noqa: E402
from tests.test_architecture import PACKAGE, ROOMS  # noqa: E402

PAGE = ROOT / "docs/architecture.md"
TABLE = re.compile(r"\| room \| imports \|\n(?:\|.*\n)+")


def main() -> None:
    """Replace the table."""
    text = PAGE.read_text(encoding="utf-8")
    table = rooms_table(import_graph(PACKAGE), ROOMS) + "\n"
    PAGE.write_text(TABLE.sub(lambda _: table, text), encoding="utf-8")


if __name__ == "__main__":
    main()
