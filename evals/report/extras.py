"""The report's smaller tables: retrieval, growth of costs, graders, and lengths as they were counted."""

from collections.abc import Mapping, Sequence
from typing import Any

from evals.report.doubt_charts import doubt_rows
from evals.report.labels import CONDITION_LABELS, PERMISSION_LABELS
from evals.summary import percent

Series = Sequence[Mapping[str, Any]]


def describe_extras(name: str, series: Series, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of one dataset; what was not measured is empty."""
    curves = [curve for curve in summary.get("retrieval", ()) if curve.get("dataset") == name]
    return {
        "recall_table": curves[0] if curves and curves[0]["points"] else None,
        "growth": _growth(series),
        "graded": [row for one in series for point in one["points"] for row in _graded(one, point)],
        "doubt": doubt_rows(series),
        "lengths": [_lengths(one, point) for one in series for point in one["points"]],
    }


def _name(one: Mapping[str, Any]) -> str:
    return f"{one['model']}, {CONDITION_LABELS[one['condition']]}, {PERMISSION_LABELS[one['permission']]}"


def _growth(series: Series) -> list[dict[str, str]]:
    """A row for each model and condition that has an exponent; of both permissions the first that has one."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for one in series:
        growth = one.get("growth") or {}
        if any(fit and (fit["exponent"] is not None or fit["constant"]) for fit in growth.values()):
            cells = {cost: _exponent(growth.get(cost)) for cost in ("ttft", "memory")}
            row = {"model": one["model"], "condition": one["condition"], **cells}
            found.setdefault((one["model"], one["condition"]), row)
    return list(found.values())


def _exponent(fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return "-"
    if fit["constant"]:
        return "does not grow"
    if fit["exponent"] is None:
        return f"- ({fit['why_none']})" if fit.get("why_none") else "-"
    return f"{fit['exponent']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"


def _graded(one: Mapping[str, Any], point: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    corrected = point.get("corrected")
    if corrected:
        rows.append(_where(one, point) | _row(corrected["grader"], corrected["n"], corrected["raw"], corrected))
    for grader, judged in point.get("judged", {}).items():
        row = _row(grader, judged["n"], judged["hallucinated"]["rate"], judged.get("corrected"))
        row |= _where(one, point)
        agreement = judged.get("agreement") or {}
        kappa = agreement.get("kappa")
        row |= {"agreement": percent(agreement.get("rate")), "kappa": "-" if kappa is None else f"{kappa:.2f}"}
        rows.append(row)
    return rows


def _where(one: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, str]:
    return {"series": _name(one), "budget": f"{point['budget']:,}"}


def _row(grader: str, n: int, raw: float | None, corrected: Mapping[str, Any] | None) -> dict[str, str]:
    right = "-"
    if corrected:
        right = f"{percent(corrected['rate'])} [{percent(corrected['low'])}, {percent(corrected['high'])}]"
    return {
        "grader": grader,
        "n": str(n),
        "raw": percent(raw),
        "corrected": right,
        "agreement": "-",
        "kappa": "-",
    }


def _lengths(one: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    tokens = point.get("tokens") or {}
    share = (point.get("scraped") or {}).get("kv_share") or {}
    energy = (point.get("energy_j") or {}).get("mean")
    return {
        **_where(one, point),
        "client": tokens.get("client_counted_mean"),
        "served": tokens.get("served_mean"),
        "difference": tokens.get("max_difference"),
        "at_limit": point["at_limit"],
        "in_use": f"{percent(share['mean'])}, {percent(share['peak'])} %" if share.get("n") else "-",
        "energy": "-" if energy is None else f"{energy:.3g} J",
    }


def describe_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """How one model was asked on one dataset: by its last session, and how many there were."""
    sessions = run["sessions"]
    last = sessions[-1]
    made, dataset, git = last["made_by"], last["dataset"], last["made_by"]["git"]
    commit = f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    facts = {
        "asked": f"{sessions[0]['started'][:19]} to {(last['finished'] or 'not ended')[:19]} UTC, in {len(sessions)}"
        f" session{'s' if len(sessions) > 1 else ''}",
        "command": " ".join(last["command"]),
        "Fathom": f"{made['fathom']}{commit}; Python {made['python']}; {made['platform']}; {packages}",
        "dataset": f"{dataset['source']}, digest {dataset['digest'][:16]}",
        "retrieval": f"{last['retrieval']['retriever']}, documents {last['retrieval']['documents'][:16]}",
        "prompts": f"digest {last['prompts']['digest']}",
        "model": ", ".join(f"{name} {value}" for name, value in last["served"].items() if value is not None),
    }
    return {"title": f"{run['model']} on {run['dataset']}", "facts": list(facts.items())}
