"""The prefix cache as clients see and steer it: salts, marks, what there is, and its end."""

import uuid

import pytest

MODELS = ("embedded:transformer", "embedded:mamba")
EVERY_MODEL = pytest.mark.parametrize("model", MODELS)


def new_text() -> str:
    """Known to nobody."""
    return f"{uuid.uuid4().hex} " * 8


@EVERY_MODEL
def test_only_requests_of_the_same_salt_find_each_other(client, model):
    prompt = new_text()

    def cached(**body: str) -> int:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=1, extra_body=body)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached(cache_salt="a"), cached(cache_salt="b"), cached()] == [0, 0, 0]
    known = cached(cache_salt="a")
    assert known > 0
    # A hint for a router before several servers: one server is not divided by it.
    assert cached(cache_salt="b", prompt_cache_key="x") == cached(prompt_cache_key="y") == known
