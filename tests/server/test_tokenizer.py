"""Tokenizing, chat templates, and text that comes token by token."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import longest_pause

from models.embedded import embedded_directory
from models.errors import ModelError
from server.chat_template import ChatTemplateError
from server.tokenizer import IncrementalDetokenizer, ModelTokenizer

DIRECTORY = embedded_directory("embedded:transformer")
TOKENIZER = ModelTokenizer(DIRECTORY)
SPECIAL = [token for token in range(TOKENIZER.vocab_size) if not TOKENIZER.has_text(token)]
# One byte each, which alone is no character.
BROKEN = [token for token in range(300) if TOKENIZER.decode([token]) == "\ufffd"]


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tokenizer's files, free to be broken."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DIRECTORY / name, tmp_path / name)
    return tmp_path


def set_template(directory, template):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def of_a_text(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


any_tokens = st.lists(
    st.one_of(st.sampled_from(BROKEN), st.sampled_from(SPECIAL), st.integers(0, TOKENIZER.vocab_size - 1)), max_size=60
)


@given(st.one_of(st.text(max_size=40).map(of_a_text), any_tokens), st.data())
def test_pieces_joined_are_the_whole_text(token_ids, data):
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    pieces, start = [], 0
    while start < len(token_ids):
        size = data.draw(st.integers(1, 3))
        pieces.append(detokenizer.add(token_ids[start : start + size]))
        start += size
    assert "".join(pieces) + detokenizer.add([], last=True) == TOKENIZER.decode(token_ids)


@given(st.text(max_size=40))
def test_tokens_have_the_bytes_of_a_text(text):
    token_ids = [token for token in of_a_text(text) if TOKENIZER.has_text(token)]
    joined = b"".join(TOKENIZER.token_bytes(token) for token in token_ids).decode(errors="replace")
    # Decoding may take a text's first space away.
    assert TOKENIZER.decode(token_ids) in (joined, joined.removeprefix(" "))


class CountingTokenizer(ModelTokenizer):
    num_decoded = 0

    def decode(self, token_ids, **options):
        self.num_decoded += len(token_ids)
        return super().decode(token_ids, **options)


@pytest.mark.parametrize("run", [SPECIAL[:1], BROKEN[:1], BROKEN[-1:], of_a_text("\ufffd"), of_a_text("word")], ids=str)
def test_a_long_run_of_whatever_costs_no_more_for_each_token(run):
    tokenizer = CountingTokenizer(DIRECTORY)
    detokenizer = IncrementalDetokenizer(tokenizer)
    token_ids = (of_a_text("Ana ") + run * 500)[:500]
    pieces = [detokenizer.add([token]) for token in token_ids] + [detokenizer.add([], last=True)]
    assert "".join(pieces) == TOKENIZER.decode(token_ids)
    assert tokenizer.num_decoded < 30 * len(token_ids)


def test_text_that_is_broken_for_good_is_shown_as_it_comes():
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    assert "\ufffd" in "".join(detokenizer.add([token]) for token in BROKEN[:1] * 20)


def test_tokenizing_leaves_other_threads_at_work():
    text = "".join(f"Ana {number} is a painter. " for number in range(30_000))
    worst_s, took_s = longest_pause(lambda: TOKENIZER.encode(text, add_special_tokens=True))
    assert worst_s < took_s / 2


def test_truncation_and_padding_of_the_file_are_left_off(checkpoint):
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    text = "Ana Torres was born in 1812."
    assert ModelTokenizer(checkpoint).encode(text, add_special_tokens=True) == TOKENIZER.encode(
        text, add_special_tokens=True
    )
    content["truncation"] = None
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    assert ModelTokenizer(checkpoint).encode("Ana", add_special_tokens=True) == TOKENIZER.encode(
        "Ana", add_special_tokens=True
    )


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


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{% generation %}<{{ m.content }}>{% endgeneration %}{% endfor %}", "<é><2>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "é"}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, sort_keys=True) }}", r'{"a": 1, "b": "\u00e9"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "2"),
        ("{{ tools is none }}{{ documents is defined }}", "TrueFalse"),
    ],
)
def test_what_templates_use(checkpoint, template, text):
    set_template(checkpoint, template)
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "2"}]
    assert ModelTokenizer(checkpoint).render_chat(messages, True) == text


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
        ("chat_template.json", "[", r"chat_template\.json cannot be read as JSON"),
        ("chat_template.json", '{"chat_template": 1}', "the chat template cannot be read: it is no text, but 1"),
        ("special_tokens_map.json", "[]", r"special_tokens_map\.json is not a JSON object"),
    ],
)
def test_broken_files_are_named(checkpoint, name, content, message):
    if name == "chat_template.json":
        set_template(checkpoint, None)
    (checkpoint / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        ModelTokenizer(checkpoint)


def test_a_missing_tokenizer_tells_what_was_looked_for(tmp_path):
    files = r"tokenizer\.json, tokenizer\.model \(of SentencePiece or tiktoken\) and \*\.tiktoken"
    looked_for = f"has no tokenizer: looked for {files}"
    with pytest.raises(ModelError, match=f"{looked_for}$"):
        ModelTokenizer(tmp_path)
    (tmp_path / "tekken.json").touch()
    with pytest.raises(ModelError, match=rf"{looked_for}; not read: tekken\.json$"):
        ModelTokenizer(tmp_path)


def test_a_processor_s_template_is_taken_where_there_is_no_other(checkpoint):
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert ModelTokenizer(checkpoint).render_chat([{"role": "user", "content": "hi"}], True) != "from json"
    set_template(checkpoint, None)
    assert ModelTokenizer(checkpoint).render_chat([], True) == "from json"


def test_special_tokens_that_there_are_not_write_nothing(checkpoint):
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "pad_token": "<p>"}))
    file = checkpoint / "tokenizer_config.json"
    file.write_text(json.dumps({"bos_token": None, "chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"}))
    assert ModelTokenizer(checkpoint).render_chat([], True) == "||<p>"
