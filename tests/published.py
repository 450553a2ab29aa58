"""What a dataset has published."""

import hashlib
from pathlib import Path


def hashes(out: Path) -> dict[str, str]:
    """Every published file's hash, the report aside."""
    files = [
        p for p in sorted(out.rglob("*")) if p.is_file() and p.relative_to(out).parts[0] not in (".build", "report")
    ]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
