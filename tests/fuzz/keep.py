"""Keeps a finding in the corpus: ``python -m tests.fuzz.keep KIND SEED NAME``.

Text is kept as it is; of a binary file only the bytes between the first and the last that differ
from the valid input.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.harness import Bench

CORPUS = Path(__file__).parent / "corpus"


FOLDER = "@FOLDER@"
"""Stands in texts for the absolute path of the input's folder."""


def record_of(kind: str, path: Path, content: bytes, *, folder: Path, text: bool) -> dict[str, Any]:
    """The JSON record of a finding: of the broken ``content`` of a valid file."""
    valid, name = path.read_bytes(), path.name
    record: dict[str, Any] = {"kind": kind, "file": name}
    if text:
        try:
            return record | {"text": content.decode("utf-8").replace(str(folder), FOLDER)}
        except UnicodeDecodeError:
            return record | {"base64": base64.b64encode(content).decode()}
    shorter = min(len(valid), len(content))
    start = next((i for i in range(shorter) if valid[i] != content[i]), shorter)
    most = shorter - start
    end = next((i for i in range(most) if valid[-1 - i] != content[-1 - i]), most)
    middle = content[start : len(content) - end]
    return record | {
        "at": start,
        "remove": len(valid) - end - start,
        "base64": base64.b64encode(middle).decode(),
    }


def content_of(record: dict[str, Any], path: Path, folder: Path) -> bytes:
    """The content of a finding; ``path``: of the valid file in ``folder`` that it breaks."""
    valid = path.read_bytes()
    if "text" in record:
        text: str = record["text"].replace(FOLDER, str(folder))
        return text.encode("utf-8", "surrogatepass")
    middle = base64.b64decode(record["base64"])
    if "at" not in record:
        return middle
    start, end = record["at"], record["at"] + record["remove"]
    assert end <= len(valid), "the valid input has changed"
    return valid[:start] + middle + valid[end:]


def main(kind: str, seed: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(kind, Path(folder) / "input")
        path, content = bench.case(int(seed))
        record = record_of(kind, path, content, folder=bench.folder, text=bool(bench.kind.text))
        assert content_of(record, path, bench.folder) == content
        (CORPUS / f"{kind}-{name}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
