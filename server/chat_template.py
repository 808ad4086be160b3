"""A checkpoint's chat template: where it lies, and the sandbox in which it runs."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from models.errors import ModelError
from server.checkpoint_json import read_json


class ChatTemplateError(Exception):
    """The chat template refuses these messages, or there is none."""


class GenerationBlock(Extension):
    """`{% generation %}`, with which templates mark an assistant's words for training: here just what is in it."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_chat_template(directory: Path, config: Mapping[str, Any]) -> Template | None:
    """The template of chat_template.jinja, else of tokenizer_config.json, else of chat_template.json, which processors
    of pictures and text have; None where there is none.

    Args:
        config: tokenizer_config.json's content.
    Raises:
        ModelError: it cannot be read.
    """
    source = _source(directory, config)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ModelError(f"{directory}: the chat template cannot be read: {error}") from error


def _source(directory: Path, config: Mapping[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: the chat template cannot be read: {error}") from error
    source = config.get("chat_template")
    if source is None:
        source = read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several named ones
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
    if isinstance(source, dict):
        source = source.get("default")
    if source is None or isinstance(source, str):
        return source
    raise ModelError(f"{directory}: the chat template cannot be read: it is no text, but {source!r:.40}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
