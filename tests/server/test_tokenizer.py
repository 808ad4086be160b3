"""Tokenizing, chat templates, and text that comes token by token."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embedded import embedded_directory
from models.errors import ModelError
from server.tokenizer import ChatTemplateError, IncrementalDetokenizer, ModelTokenizer

DIRECTORY = embedded_directory("embedded:transformer")
TOKENIZER = ModelTokenizer(DIRECTORY)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tokenizer's files, free to be broken."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DIRECTORY / name, tmp_path / name)
    return tmp_path


def set_template(directory, template):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


@given(st.text(max_size=40), st.data())
def test_pieces_joined_are_the_whole_text(text, data):
    token_ids = TOKENIZER.encode(text, add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    pieces, start = [], 0
    while start < len(token_ids):
        size = data.draw(st.integers(1, 3))
        pieces.append(detokenizer.add(token_ids[start : start + size]))
        start += size
    assert "".join(pieces) + detokenizer.add([], last=True) == TOKENIZER.decode(token_ids)


def test_no_half_characters_are_shown():
    token_ids = TOKENIZER.encode("日本🙂", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    pieces = [detokenizer.add([token]) for token in token_ids]
    assert "".join(pieces) == "日本🙂"
    assert all("\ufffd" not in piece for piece in pieces)


def test_what_is_left_at_the_end_is_shown_even_if_broken():
    token_ids = TOKENIZER.encode("🙂", add_special_tokens=False)[:-1]
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert "\ufffd" in detokenizer.add(token_ids, last=True)


def test_templates_from_the_file_beside_win(checkpoint):
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert ModelTokenizer(checkpoint).render_chat([{"role": "user", "content": "hi"}], True) == "hi!"


def test_no_template_is_fine_until_a_chat_comes(checkpoint):
    set_template(checkpoint, None)
    tokenizer = ModelTokenizer(checkpoint)
    assert not tokenizer.has_chat_template
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / messages }}",
    ],
)
def test_templates_run_sandboxed(checkpoint, template):
    set_template(checkpoint, template)
    with pytest.raises(ChatTemplateError):
        ModelTokenizer(checkpoint).encode_chat([{"role": "user", "content": "hi"}])


def test_named_templates_give_the_default_one(checkpoint):
    set_template(checkpoint, [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}])
    assert ModelTokenizer(checkpoint).render_chat([], True) == "d"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", '{"model": 1}', "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("chat_template.jinja", "{% if %}", "chat template cannot be read"),
    ],
)
def test_broken_files_are_named(checkpoint, name, content, message):
    (checkpoint / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        ModelTokenizer(checkpoint)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        ModelTokenizer(tmp_path)
