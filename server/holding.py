"""Keeps what an engine computes for those who want it in one piece, until it is complete."""

from collections.abc import Iterable

import msgspec

from server.request import EngineRequest, TokenOutput, join_logprobs

Named = tuple[str, TokenOutput]  # with its request's id


class Holding:
    """Joins the outputs of each request that asks for it.

    Who reads nothing before the end would pay for every token on its way: the server's process would wake for each.
    """

    def __init__(self) -> None:
        self._held: dict[str, list[TokenOutput]] = {}

    def add(self, request: EngineRequest) -> None:
        """From its arrival on, before anything is said of it."""
        if request.whole:
            self._held[request.request_id] = []

    def pass_on(self, outputs: Iterable[Named]) -> tuple[list[Named], list[str]]:
        """Of a step's outputs those to be sent now, and the requests whose first one is held."""
        sent, begun = [], []
        for request_id, output in outputs:
            held = self._held.get(request_id)
            if held is None or output.prompt_logprobs is not None:
                sent.append((request_id, output))
            elif output.finish_reason is not None:
                del self._held[request_id]
                sent.append((request_id, _join([*held, output])))
            else:
                if not held:
                    begun.append(request_id)
                held.append(output)
        return sent, begun


def _join(outputs: list[TokenOutput]) -> TokenOutput:
    """One output with all the tokens, which ends as the last does."""
    told = [output.logprobs for output in outputs if output.logprobs is not None]
    return msgspec.structs.replace(
        outputs[-1],
        token_ids=tuple(token_id for output in outputs for token_id in output.token_ids),
        logprobs=join_logprobs(told) if told else None,
    )
