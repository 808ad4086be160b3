import itertools
from collections.abc import Callable

import pytest

from loadtest import workload
from loadtest.config import ConfigError


def by_word(text: str) -> int:
    return len(text.split()) + 7


def by_three_bytes(text: str) -> int:
    return len(text.encode()) // 3 + 12


@pytest.mark.parametrize("count", [by_word, by_three_bytes])
@pytest.mark.parametrize("target", [64, 500, 4096])
def test_prompts_have_the_wanted_size(count: Callable[[str], int], target: int) -> None:
    price = workload.tokens_per_word(count, seed=3, salt="s")
    for index in range(10):
        prompt = workload.size_prompt(workload.Sizing(count, target, price), seed=3, salt="s", index=index)
        assert prompt.num_tokens == count(prompt.text)
        assert abs(prompt.num_tokens - target) <= max(2, target // 100)


@pytest.mark.parametrize("count", [by_word, by_three_bytes])
@pytest.mark.parametrize("target", [64, 500, 4096])
@pytest.mark.parametrize("room", [0, 3])
def test_no_prompt_is_longer_than_the_model_takes(count: Callable[[str], int], target: int, room: int) -> None:
    """Within 1 % of the target is not enough where the target is all that fits."""
    price = workload.tokens_per_word(count, seed=3, salt="s")
    sizing = workload.Sizing(count, target, price, max_tokens=target + room)
    for index in range(30):
        num_tokens = workload.size_prompt(sizing, seed=3, salt="s", index=index).num_tokens
        assert target - max(2, target // 100, 2 * price) <= num_tokens <= target + room


def test_counting_stays_cheap() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return by_three_bytes(text)

    price = workload.tokens_per_word(by_three_bytes, seed=0, salt="s")
    for index in range(20):
        workload.size_prompt(workload.Sizing(count, 1000, price), seed=0, salt="s", index=index)
    assert len(asked) <= 3 * 20


def test_no_two_prompts_share_a_prefix_worth_caching() -> None:
    prompts = [workload.compose(seed=0, salt="s", index=i, num_words=50) for i in range(200)]
    again = [workload.compose(seed=0, salt="other run", index=i, num_words=50) for i in range(200)]
    everything = sorted(prompts + again)
    # Sorted, the two that share most are neighbours.
    assert all(one[:9] != other[:9] for one, other in itertools.pairwise(everything))


def test_a_seed_and_a_salt_repeat_the_very_bytes() -> None:
    one = workload.compose(seed=4, salt="s", index=9, num_words=30)
    assert one == workload.compose(seed=4, salt="s", index=9, num_words=30)
    assert one != workload.compose(seed=5, salt="s", index=9, num_words=30)
    other_salt = workload.compose(seed=4, salt="t", index=9, num_words=30)
    assert one != other_salt
    assert one.split("]")[1] == other_salt.split("]")[1]


def test_a_context_that_template_and_nonce_already_exceed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--context 5: the nearest prompt has 1\d tokens"):
        workload.size_prompt(workload.Sizing(by_word, 5, 1.0), seed=0, salt="s", index=0)


def test_estimates() -> None:
    count = workload.estimating_counter(chars_per_token=4.0)
    assert count("x" * 100) == 25
