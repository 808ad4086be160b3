"""The class behind our YAML files. lm-eval loads this module; nothing else of ours does, for it brings torch along."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from evals.config import ConfigError
from evals.lm_tasks.documents import build_documents, grade_of, messages_of
from evals.lm_tasks.settings import read_settings
from evals.points import SCORED
from evals.records import VERDICTS

# Behind a text without a chat's template, whose answer ends with its line.
CUE = "\n\nAnswer:"


class FathomTask(ConfigurableTask):  # type: ignore[misc]
    """One condition. lm-eval's own class but for its metrics, one of each verdict at each budget, and its prompt,
    which is that of `fathom eval run`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        content = {name: deepcopy(value) for name, value in config.items() if name != "class"}
        settings = read_settings(content["metadata"], content["dataset_kwargs"])
        content["metric_list"] = [_metric(verdict, pooled) for verdict in VERDICTS]
        content["metric_list"] += [
            _metric(f"{verdict}_{budget}", "mean") for verdict in VERDICTS for budget in settings.budgets
        ]
        content["generation_kwargs"]["max_gen_toks"] = settings.config.max_tokens
        super().__init__(config=content)

    def fewshot_context(
        self,
        doc: Mapping[str, Any],
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Any:
        """The prompt: the messages through the model's template, or their texts.

        Raises:
            ConfigError: examples or an instruction would go before it, and change what is measured.
        """
        if num_fewshot or system_instruction:
            raise ConfigError("--num_fewshot, --system_instruction: our prompts have their own instruction; leave out")
        messages = messages_of(doc)
        if apply_chat_template and chat_template is not None:
            return chat_template(messages, add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in messages) + CUE

    def construct_requests(self, doc: Mapping[str, Any], ctx: Any, **options: Any) -> Instance | list[Instance]:
        request = super().construct_requests(doc, ctx, **options)
        if not options.get("apply_chat_template"):
            request.arguments[1]["until"] = ["\n"]
        return request


def _metric(name: str, aggregation: Any) -> dict[str, Any]:
    better = name.startswith(("correct", "abstained"))
    return {"metric": name, "aggregation": aggregation, "higher_is_better": better}


def pooled(values: Sequence[float]) -> float:
    """Over all budgets. No name of lm-eval's own, so that it adds no standard error: the same question is asked at
    each budget, so these values are not independent.
    """
    return sum(values) / len(values)


def build(**given: Any) -> dict[str, Dataset]:
    """lm-eval's `custom_dataset`; it gets --metadata, the model's arguments and the YAML's own in one."""
    fixed: dict[str, Any] = {name: given.pop(name) for name in ("dataset", "condition", "defaults") if name in given}
    return {"test": Dataset.from_list(build_documents(read_settings(given, fixed)))}


def user_text(document: Mapping[str, Any]) -> str:
    return messages_of(document)[-1]["content"]


def accepted(document: Mapping[str, Any]) -> list[str]:
    return list(document["question"]["answers"])


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """A share is of the scored answers: one without a verdict adds to "unscored" and to no other."""
    verdict = grade_of(document, results[0]).verdict
    known = VERDICTS if verdict in SCORED else ("unscored",)
    values = {name: float(name == verdict) for name in known}
    return values | {f"{name}_{document['budget']}": value for name, value in values.items()}
