"""How long steps take, learnt from those that were."""

import pytest

from server.speed import StepSpeed


def test_nothing_is_known_before_the_first():
    speed = StepSpeed()
    assert speed.prefill_rate is None
    assert speed.num_tokens_in(1.0) is None
    speed.note(0, 0.02)
    assert speed.num_tokens_in(1.0) is None


def test_what_decodes_take_is_no_part_of_what_a_token_of_prefill_takes():
    speed = StepSpeed()
    for _ in range(20):
        speed.note(0, 0.05)
        speed.note(16, 0.05 + 16 / 1000)
    assert speed.prefill_rate == pytest.approx(1000)
    assert speed.num_tokens_in(0.1) == pytest.approx(50, abs=1)
    assert speed.num_tokens_in(0.04) == 0


def test_it_follows_what_changes_and_long_steps_say_most():
    speed = StepSpeed()
    for _ in range(5):
        speed.note(1000, 1.0)
    speed.note(16, 0.1)
    assert speed.prefill_rate == pytest.approx(1000, rel=0.01)
    for _ in range(40):
        speed.note(0, 0.02)
        speed.note(64, 0.02 + 64 / 200)
    assert speed.prefill_rate == pytest.approx(200, rel=0.02)


def test_a_prefill_faster_than_a_decode_gives_a_speed():
    speed = StepSpeed()
    speed.note(0, 1.0)
    speed.note(100, 0.5)
    assert speed.prefill_rate == pytest.approx(2000)
    speed.note(100, 0.0)
    assert speed.prefill_rate == pytest.approx(2000)
