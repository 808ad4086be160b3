from collections.abc import Callable
from typing import Any

import pytest

from loadtest.config import ConfigError, LoadConfig
from loadtest.latency import Slo


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"endpoint": "127.0.0.1:8000"}, "--endpoint"),
        ({"endpoint": "http://host:notaport"}, "--endpoint"),
        ({"endpoint": "http://host:0"}, "--endpoint has a bad port, 0"),
        ({"endpoint": "http://[bad"}, "--endpoint has a bad host"),
        ({"endpoint": "http://a..b:80"}, "--endpoint has a bad host"),
        ({"endpoint": "http://host/caf\u00e9"}, "--endpoint must end in"),
        ({"endpoint": "http://host/v1?key=k"}, "--endpoint must end in"),
        ({"model": ""}, "--model"),
        ({"rate": 0.0}, "--rate"),
        ({"rate": float("nan")}, "--rate"),
        ({"rate": 1e9}, "--rate"),
        ({"duration_s": -1.0}, "--duration"),
        ({"warmup_s": -1.0}, "--warmup"),
        ({"stop_timeout_s": float("inf")}, "--stop-timeout"),
        ({"context_tokens": 0}, "--context"),
        ({"output_tokens": 0}, "--output"),
        ({"max_in_flight": 0}, "--max-in-flight"),
        ({"max_in_flight": 1, "processes": 2}, "--max-in-flight"),
        ({"processes": 65}, "--processes"),
        ({"slo": Slo(ttft_s=0.0)}, "--ttft-slo"),
        ({"slo": Slo(e2e_s=-1.0)}, "--e2e-slo"),
        ({"api_key": "line\nbreak"}, "--api-key"),
    ],
)
def test_a_bad_option_is_named(make_config: Callable[..., LoadConfig], changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        make_config(**changes)


def test_the_key_is_neither_shown_nor_written(make_config: Callable[..., LoadConfig]) -> None:
    config = make_config(api_key="secret")
    assert "secret" not in repr(config)
    assert "secret" not in str(config.to_json())
    with pytest.raises(ConfigError, match="a key goes into --api-key") as caught:
        make_config(endpoint="http://me:secret@host")
    assert "secret" not in str(caught.value)
