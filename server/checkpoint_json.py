"""The small JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from models.errors import ModelError


def read_json(file: Path) -> dict[str, Any]:
    """The object that a file holds; an empty one where there is no such file.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object")
    return content
