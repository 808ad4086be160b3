"""Files that a reader never sees by half: written beside their place, and put there in one move."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(file: Path, content: bytes) -> None:
    """Raises:
    OSError: it cannot be written.
    """
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_bytes(content)
    os.replace(draft, file)


def write_json(file: Path, content: Any) -> None:
    """Readable, without what is no number.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(file, text.encode())
