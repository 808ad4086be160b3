"""Energy against counters whose every reading is known."""

import sys
from types import SimpleNamespace

import pytest
from fakes_endpoint import MODEL, Planted, serving

from evals import retry
from evals.config import ConfigError, RunConfig
from evals.energy import EnergyLedger, is_local, open_counter
from evals.output import write_outputs
from evals.runner import run_eval
from evals.store import Store


def counting(*readings):
    left = list(readings)
    return lambda: left.pop(0)


def test_what_two_requests_share_is_split_evenly():
    ledger = EnergyLedger(counting(100.0, 110.0, 130.0, 135.0))
    with ledger.watch() as first:
        # Ten joules pass, then the second comes; twenty on, the first goes; five on, the second.
        second_watch = ledger.watch()
        second = second_watch.__enter__()
    second_watch.__exit__(None, None, None)
    assert (first.joules, second.joules) == (10 + 10, 10 + 5)


def test_nothing_between_two_requests_is_anybodys():
    ledger = EnergyLedger(counting(0.0, 4.0, 1000.0, 1001.0))
    with ledger.watch() as one:
        pass
    with ledger.watch() as other:
        pass
    assert (one.joules, other.joules) == (4, 1)


@pytest.mark.parametrize(("lost", "later"), [(None, None), (3.0, 17 / 2)])
def test_over_a_counter_that_fails_or_begins_anew_there_is_no_figure(lost, later):
    ledger = EnergyLedger(counting(5.0, lost, 20.0, 21.0, 21.0, 30.0))
    with ledger.watch() as first, ledger.watch() as second:
        pass
    with ledger.watch() as third:
        pass
    assert (first.joules, second.joules, third.joules) == (None, later, 9)


def test_a_request_that_fails_is_under_way_no_longer():
    ledger = EnergyLedger(counting(0.0, 1.0, 2.0, 8.0))
    with pytest.raises(RuntimeError), ledger.watch():
        raise RuntimeError
    with ledger.watch() as spent:
        pass
    assert spent.joules == 6


def test_without_a_counter_there_is_no_energy():
    with EnergyLedger(None).watch() as spent:
        pass
    assert spent.joules is None


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost/v1", True),
        ("http://[::1]:80", True),
        ("https://api.example.com", False),
        ("http://128.0.0.1", False),
        ("http://localhost.example.com", False),
    ],
)
def test_which_addresses_are_this_machine(url, local):
    assert is_local(url) == local


class NVMLError(Exception):
    """As the real one: raised by every call that fails."""


def stand_in(num_devices=2, *, has_driver=True, counts_energy=True):
    """The five names of pynvml that are used; each reading of each GPU has another 500 mJ."""
    totals = dict.fromkeys(range(num_devices), 7_000_000)

    def init():
        if not has_driver:
            raise NVMLError("Driver Not Loaded")

    def read(device):
        if not counts_energy:
            raise NVMLError("Not Supported")
        totals[device] += 500
        return totals[device]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: num_devices,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )


def test_the_counter_is_of_all_gpus_in_joules(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", stand_in())
    read = open_counter()
    assert (read(), read()) == (14_002, 14_003)


@pytest.mark.parametrize(
    "module", [None, stand_in(0), stand_in(has_driver=False), stand_in(counts_energy=False)]
)  # the first: not installed
def test_what_cannot_be_read_is_no_error(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert open_counter() is None


@pytest.mark.parametrize(("energy", "joules"), [("auto", 1.0), ("local", 1.0), ("off", None)])
async def test_each_answer_has_its_energy(dataset, tmp_path, monkeypatch, energy, joules):
    monkeypatch.setitem(sys.modules, "pynvml", stand_in())
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.01)
    options = {"budgets": (0, 20), "num_questions": 3, "concurrency": 1, "scrape_interval_s": 0, "energy": energy}
    async with serving(Planted(refusals=[503])) as url:
        await run_eval(RunConfig(endpoint=url, model=MODEL, out=tmp_path, **options), dataset)
    with Store(tmp_path) as store:
        rows = list(store.rows())
    # One reading before and one after; the first question was asked twice, and the pause is not its answer's.
    assert [row.energy_j for row in rows if row.attempts == 1] == pytest.approx([joules] * 5)
    assert [row.energy_j for row in rows if row.attempts == 2] == [None]
    summary, _ = write_outputs(tmp_path)
    found = [point["energy_j"] for point in summary["models"][0]["points"]]
    assert [point["n"] for point in found] == ([2, 3] if joules else [0, 0])
    assert [point["mean"] for point in found] == pytest.approx([joules] * 2)


def test_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="--energy must be one of auto, local, off"):
        RunConfig(endpoint="http://x", model="m", out=tmp_path, energy="green")
    with pytest.raises(ConfigError, match="--scrape-interval must be 0 or more seconds"):
        RunConfig(endpoint="http://x", model="m", out=tmp_path, scrape_interval_s=-1)
