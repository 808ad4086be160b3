"""docs/models.md says what the code does."""

from models.families import FAMILIES
from models.families.rope import ROPE_TYPES
from scripts.models_page import PAGE, needs_rows, page


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m scripts.models_page"


def test_the_page_names_all_there_is():
    text = page()
    for name in (*FAMILIES, *ROPE_TYPES):
        assert f"`{name}`" in text


def test_bytes_by_hand():
    """Two of keys and values, bytes, layers, heads, entries; convolution and state in float32."""
    rows = {name: needs for name, *needs in needs_rows()}
    assert rows["Llama-3.1-8B"] == [f"{2 * 2 * 32 * 8 * 128:,}", "0"]
    assert rows["Mamba-2-2.7B"] == ["0", f"{4 * 64 * ((5120 + 2 * 128) * 3 + 80 * 64 * 128):,}"]
    falcon_state = f"{4 * 44 * ((3072 + 2 * 256) * 3 + 48 * 64 * 256):,}"
    assert rows["Falcon-H1-7B"] == [f"{2 * 2 * 44 * 2 * 128:,}", falcon_state]
    delta_state = f"{4 * 36 * ((2 * 2048 + 4096) * 3 + 32 * 128 * 128):,}"
    assert rows["Qwen3-Next-80B-A3B"] == [f"{2 * 2 * 12 * 2 * 256:,}", delta_state]
