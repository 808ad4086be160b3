"""Single steps against the recurrences written as loops, on rows of a pool that lie together, in disorder, apart."""

import pytest
import torch
from poison import num_poisoned, rows_apart

from models.kernels.delta_rule_torch import delta_loop, delta_step
from models.kernels.selective_scan_torch import selective_loop, selective_step
from models.kernels.ssd_torch import ssd_loop, ssd_step

SLOTS = {"one": [3], "together": [2, 3, 4], "in disorder": [4, 2, 3], "apart": [5, 0, 3]}


def inputs(kind, batch):
    """What the recurrence takes for one token of each sequence, and a state's shape."""
    generator = torch.Generator().manual_seed(batch)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    if kind == "ssd":
        B, C = random(batch, 2, 5), random(batch, 2, 5)
        return [random(batch, 4, 3), random(batch, 4).abs(), -random(4).abs(), B, C], (4, 3, 5)
    if kind == "selective":
        B, C = random(batch, 5), random(batch, 5)
        return [random(batch, 6), random(batch, 6).abs(), -random(6, 5).abs(), B, C], (6, 5)
    decay, beta = -random(batch, 4).abs(), random(batch, 4).sigmoid()
    return [random(batch, 2, 5), random(batch, 2, 5), random(batch, 4, 3), decay, beta], (4, 5, 3)


@pytest.mark.parametrize("layout", [torch.clone, rows_apart], ids=["side by side", "between others"])
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize(
    ("kind", "step", "loop"),
    [("ssd", ssd_step, ssd_loop), ("selective", selective_step, selective_loop), ("delta", delta_step, delta_loop)],
)
def test_step_is_one_turn_of_the_loop(kind, step, loop, slots, layout):
    arguments, shape = inputs(kind, len(slots))
    pool = layout(torch.randn(6, *shape, generator=torch.Generator().manual_seed(9)))
    before, rows, poisoned = pool.clone(), torch.tensor(slots), num_poisoned(pool)
    # A is the same for all sequences; the others get a dimension for their one token.
    has_A = kind != "delta"
    run = [x if has_A and i == 2 else x.unsqueeze(1) for i, x in enumerate(arguments)]
    expected, state = loop(*run, state=before[rows])
    y = step(*arguments, pool=pool, slots=rows)
    torch.testing.assert_close(y, expected.squeeze(1))
    torch.testing.assert_close(pool[rows], state)
    others = [row for row in range(6) if row not in slots]
    assert torch.equal(pool[others], before[others])
    assert num_poisoned(pool) == poisoned
