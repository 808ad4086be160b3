"""The longest context, to the token: by a model's positions and by the cache, for chats and texts and ids."""

import json
import shutil
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_checks import assert_idle, refusal
from serving import ServerProcess
from tokenizer_files import TEXTS, train_ranks, write_config, write_ranks
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from models.embedded import embedded_directory
from models.families import read_config
from server.api.generation import refuse_by_bytes
from server.errors import ApiError
from server.tokenizer import ModelTokenizer
from server.vocabulary.bound import SINGLE_BYTES, SPACE, max_token_bytes

TRANSFORMER = "embedded:transformer"
BLOCK_SIZE, GIB = 16, 1 << 30
POSITIONS, BLOCKS = 80, 7
LIMITS = {"short": POSITIONS, TRANSFORMER: BLOCKS * BLOCK_SIZE}


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """One model of few positions, and one of many with a cache for few tokens."""
    directory = tmp_path_factory.mktemp("models") / "short"
    shutil.copytree(embedded_directory(TRANSFORMER), directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    needs = read_config(directory).cache_needs(4)
    size = BLOCKS * BLOCK_SIZE * needs.bytes_per_token
    options = ("--threads", "1", "--block-size", str(BLOCK_SIZE), "--cache-gib", repr((size + 1) / GIB))
    with ServerProcess(f"short={directory}", TRANSFORMER, *options) as server:
        yield server.wait_ready()


@pytest.fixture
def http(limited):
    with httpx.Client(base_url=limited.url, timeout=120) as client:
        yield client


def count(http: httpx.Client, body: dict) -> int:
    return http.post("/tokenize", json=body).json()["count"]


def filled(http: httpx.Client, model: str, way: str, num_tokens: int) -> dict:
    """A request whose prompt has exactly so many tokens."""
    if way == "ids":
        return {"model": model, "prompt": [5 + i % 200 for i in range(num_tokens)]}
    text = ""
    for word in (" a", " é", "\n", "Ana "):
        while True:
            longer = text + word
            key = {"messages": [{"role": "user", "content": longer}]} if way == "chat" else {"prompt": longer}
            tokens = count(http, {"model": model, **key})
            if tokens > num_tokens:
                break
            text = longer
            if tokens == num_tokens:
                return {"model": model, **key}
    raise AssertionError(f"no text has {num_tokens} tokens")


@pytest.mark.parametrize("model", LIMITS)
@pytest.mark.parametrize("way", ["ids", "text", "chat"])
def test_the_limit_is_exact_to_the_token(limited, http, model, way):
    limit, param = LIMITS[model], "messages" if way == "chat" else "prompt"
    assert http.get(f"/v1/models/{model}").json()["fathom"]["max_context_tokens"] == limit
    path = "/v1/chat/completions" if way == "chat" else "/v1/completions"
    fits = filled(http, model, way, limit - 1) | {"ignore_eos": True}
    answer = http.post(path, json=fits | {"max_tokens": 1})
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (limit - 1, 1)
    # All that is left is one token, whether it is asked for or not.
    assert http.post(path, json=fits).json()["usage"]["completion_tokens"] == 1
    for body, num_prompt, asked in (
        (fits | {"max_tokens": 2}, limit - 1, " and 2 to generate"),
        (filled(http, model, way, limit), limit, ""),
    ):
        answer = http.post(path, json=body)
        assert (answer.status_code, refusal(answer)["code"]) == (400, "context_length_exceeded")
        wanted = (
            f"{param}: the model's context is {limit} tokens, but {num_prompt} tokens of prompt{asked} were asked for"
        )
        assert refusal(answer)["message"] == wanted
    assert_idle(limited, tuple(LIMITS))


@pytest.mark.parametrize("way", ["text", "chat"])
def test_a_huge_text_is_refused_by_its_bytes(http, way):
    text = "é" * (25 << 20) if way == "text" else "Ana " * (1 << 20)
    body = {"prompt": text} if way == "text" else {"messages": [{"role": "user", "content": text}]}
    path = "/v1/chat/completions" if way == "chat" else "/v1/completions"
    answer = http.post(path, json={"model": "short", **body})
    assert (answer.status_code, refusal(answer)["code"]) == (400, "context_length_exceeded")
    num_bytes = len(text.encode())
    message = refusal(answer)["message"]
    assert f"the model's context is {POSITIONS} tokens, but " in message
    stated = int(message.split(" bytes of prompt")[0].split()[-1])
    assert stated == num_bytes if way == "text" else num_bytes < stated < num_bytes + 500
    assert "which are at least" in message


class NeverEncoding(ModelTokenizer):
    def encode(self, *_, **__):
        raise AssertionError("a text was tokenized that cannot fit")


def test_a_text_is_refused_from_the_very_byte_on():
    """However the vocabulary's longest token may be repeated."""
    tokenizer = NeverEncoding(embedded_directory(TRANSFORMER))
    longest = tokenizer._vocabulary.max_token_bytes
    engine = SimpleNamespace(info=SimpleNamespace(max_context_tokens=100))
    hosted = SimpleNamespace(tokenizer=tokenizer, engine=engine)
    for wanted in (None, 1):
        refuse_by_bytes(hosted, "x" * (99 * longest), wanted, param="prompt")  # may be 99 tokens, with room for one
    refuse_by_bytes(hosted, "x" * (100 * longest), 0, param="prompt")  # is only scored
    with pytest.raises(ApiError, match="at least 101 tokens"):
        refuse_by_bytes(hosted, "x" * (100 * longest + 1), 0, param="prompt")
    with pytest.raises(ApiError, match=f"{99 * longest + 1} bytes of prompt, which are at least 100 tokens"):
        refuse_by_bytes(hosted, "x" * (99 * longest + 1), None, param="prompt")
    with pytest.raises(ApiError):
        refuse_by_bytes(hosted, "é" * (50 * longest), None, param="prompt")
    refuse_by_bytes(
        SimpleNamespace(tokenizer=tokenizer, engine=SimpleNamespace(info=None)), "x" * 10**6, None, param="prompt"
    )


def fallback(*, normalizer: normalizers.Normalizer | None = None, single: list[str] = SINGLE_BYTES) -> Tokenizer:
    """As Llama 2's: letters, single bytes for others, spaces as marks of their own."""
    tokens = ["<unk>", *single, SPACE, "a", "b", "é", f"{SPACE}a", "ab", "aba", f"{SPACE}{SPACE}"]
    merges = [(SPACE, "a"), ("a", "b"), ("ab", "a"), (SPACE, SPACE)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marks = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.normalizer = normalizer or marks
    tokenizer.decoder = decoders.ByteFallback()
    return tokenizer


def letters(*, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A letter for each byte, as GPT-2's."""
    tokenizer = Tokenizer.from_file(str(embedded_directory(TRANSFORMER) / "tokenizer.json"))
    tokenizer.normalizer = normalizer
    return tokenizer


BOUNDED = {
    "letters": letters(),
    "letters, composed": letters(normalizer=normalizers.NFC()),
    "fallback": fallback(),
}


def check_bound(tokenizer: Tokenizer, text: str) -> None:
    longest = max_token_bytes(tokenizer)
    num_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert longest is not None
    assert len(text.encode()) <= num_tokens * longest


@pytest.mark.parametrize("tokenizer", BOUNDED.values(), ids=BOUNDED)
@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aab  ")), max_size=60))
def test_no_text_has_fewer_tokens(tokenizer, text):
    check_bound(tokenizer, text)


@pytest.mark.parametrize("tokenizer", BOUNDED.values(), ids=BOUNDED)
def test_no_odd_text_has_fewer_tokens(tokenizer):
    words = sorted(tokenizer.get_vocab(), key=len)[-3:]
    for text in (*TEXTS, *words, "\u1fbe\u0308\u0301" * 9, "\u1fef" * 9, "\u1100\u1161\u11a8" * 9):
        check_bound(tokenizer, text)


def test_where_a_token_may_be_of_any_length():
    assert max_token_bytes(fallback()) == 6  # as the single bytes are written
    assert max_token_bytes(fallback(single=SINGLE_BYTES[1:])) is None  # unknown ones in a row are one token
    for normalizer in (normalizers.Strip(), normalizers.NFKC(), normalizers.Replace("  ", SPACE)):
        assert max_token_bytes(fallback(normalizer=normalizer)) is None
    words = letters()
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), words.pre_tokenizer])
    assert max_token_bytes(words) is None
    removing = letters()
    removing.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    assert max_token_bytes(removing) is None
    assert max_token_bytes(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))) is None


def test_vocabularies_of_ranks_have_a_bound(tmp_path):
    ranks = train_ranks()
    write_ranks(tmp_path / "v.tiktoken", ranks)
    write_config(tmp_path, tokenizer_class="QWenTokenizer")
    longest = ModelTokenizer(tmp_path)._vocabulary.max_token_bytes
    assert longest is not None
    assert longest >= max(map(len, ranks))
