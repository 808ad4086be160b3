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
    llama, _, mamba = needs_rows()
    assert llama[1:] == (f"{2 * 2 * 32 * 8 * 128:,}", "0")
    assert mamba[1:] == ("0", f"{4 * 64 * ((5120 + 2 * 128) * 3 + 80 * 64 * 128):,}")
