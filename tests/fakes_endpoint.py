"""An OpenAI-compatible endpoint with planted behaviour: its true rates are known, and it remembers who asked what.

python tests/fakes_endpoint.py --port 0 --log FILE --delay-s 0.01
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

MODEL = "planted"


def count_tokens(text: str) -> int:
    """One token per word, one per line end, two to begin with: a count that a marginal count must see through."""
    return 2 + len(text.split()) + text.count("\n")


def count_chat(messages: list[dict[str, str]]) -> int:
    """The texts, and three tokens of template around each."""
    return sum(3 + count_tokens(message["content"]) for message in messages)


def answer_wrongly(_: str) -> str:
    return "nothing of the kind"


@dataclass
class Planted:
    """What the endpoint does.

    answer: the last user message -> the answer's text. draw: the whole request -> the text, in place of `answer`.
    logprob: request and word -> the log probability that it tells, where that is asked for. refusals: statuses for the
    first requests, one each.
    unknown_fields: field of a request -> the status and message that refuse it. refused_models: model -> the status
    that every question to it gets. broken: cut the first so many streams after one chunk. states: of the model, one
    for each time that the list is asked for, the last for ever. models_status, bare_list: how it answers for the
    list; models_refusals: statuses for the first times, one each. tokenizes, tokenizes_chats, reports_memory: whether
    it can. tokenize_refusals: statuses for the first counts, one each, 0 = cut the connection. sees: the most prompt
    tokens that it reads, the rest is dropped. hidden: tokens of a prompt of its own. metrics: text of /metrics.
    capacity: the most questions that it takes at once; others get a 429.
    faults: number of a question, from 0 -> what comes in place of an answer: a status, "reset", "hang-up" after one
    chunk, or "garbage".
    """

    answer: Callable[[str], str] = answer_wrongly
    draw: Callable[[dict], str] | None = None
    logprob: Callable[[dict, str], float] | None = None
    models: tuple[str, ...] = (MODEL,)
    refusals: list[int] = field(default_factory=list)
    unknown_fields: dict[str, tuple[int, str]] = field(default_factory=dict)
    refused_models: dict[str, int] = field(default_factory=dict)
    retry_after: str | None = None
    broken: int = 0
    states: list[str] = field(default_factory=list)
    models_status: int = 200
    models_refusals: list[int] = field(default_factory=list)
    bare_list: bool = False
    tokenizes: bool = True
    tokenizes_chats: bool = True
    tokenize_refusals: list[int] = field(default_factory=list)
    reports_memory: bool = True
    kind: str = "mamba"
    weights_digest: str | None = None
    device: str | None = None
    max_context: int | None = None
    sees: int | None = None
    reuses: int | None = None
    hidden: int = 0
    metrics: Callable[[], str] | None = None
    metrics_status: int = 200
    capacity: int | None = None
    faults: dict[int, int | str] = field(default_factory=dict)
    delay_s: float = 0.0
    under_way: int = 0
    log: Path | None = None
    asked: list[dict] = field(default_factory=list)

    @property
    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._chat)
        if self.metrics:
            application.router.add_get("/metrics", self._metrics)
        if self.tokenizes:
            application.router.add_post("/tokenize", self._tokenize)
        return application

    async def _models(self, _: web.Request) -> web.Response:
        status = self.models_refusals.pop(0) if self.models_refusals else self.models_status
        if status != 200:
            return web.json_response({"error": {"message": "planted refusal"}}, status=status)
        entries = [self._entry(name) for name in self.models]
        return web.json_response(entries if self.bare_list else {"object": "list", "data": entries})

    def _entry(self, name: str) -> dict:
        entry = {"id": name, "object": "model"}
        if self.reports_memory:
            entry["fathom"] = {"kind": self.kind, "max_context_tokens": self.max_context}
        if self.weights_digest:
            entry["fathom"]["weights_digest"] = self.weights_digest
        if self.device:
            entry["fathom"] |= {"dtype": "bfloat16", "device": self.device}
        if self.states:
            entry["fathom"]["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return entry

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics(), status=self.metrics_status)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.tokenize_refusals and (status := self.tokenize_refusals.pop(0)) != 200:
            if status == 0:
                request.transport.abort()
            return web.json_response({"error": {"message": "planted refusal"}}, status=status or 500)
        if "prompt" in body:
            return web.json_response({"count": count_tokens(body["prompt"])})
        if not self.tokenizes_chats:
            return web.json_response({"error": {"message": "prompt is missing"}}, status=422)
        return web.json_response({"count": count_chat(body["messages"])})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if self.log:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest() + "\n")
        if self.refusals:
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            error = {"error": {"message": "planted refusal"}}
            return web.json_response(error, status=self.refusals.pop(0), headers=headers)
        if refusal := self._refusal(body):
            return web.json_response({"error": {"message": refusal[1]}}, status=refusal[0])
        fault = self.faults.get(len(self.asked) - 1)
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "planted fault"}}, status=fault)
        if fault == "garbage":
            return web.Response(text="<html>", content_type="text/html")
        if fault == "reset":
            request.transport.abort()
        self.under_way += 1
        try:
            if self.capacity is not None and self.under_way > self.capacity:
                headers = {"Retry-After": self.retry_after} if self.retry_after else {}
                return web.json_response({"error": {"message": "too many"}}, status=429, headers=headers)
            await asyncio.sleep(self.delay_s)
            if not body.get("stream"):
                return web.json_response(self._whole(body))
            return await self._answer(request, body, hangs_up=fault == "hang-up")
        finally:
            self.under_way -= 1

    async def _answer(self, request: web.Request, body: dict, *, hangs_up: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if hangs_up:
            await _send(response, {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]})
            request.transport.abort()
            return response
        await self._stream(response, body)
        return response

    def _refusal(self, body: dict) -> tuple[int, str] | None:
        if body["model"] in self.refused_models:
            return self.refused_models[body["model"]], "planted refusal"
        return next((refusal for name, refusal in self.unknown_fields.items() if name in body), None)

    def _whole(self, body: dict) -> dict:
        text = self.answer(body["messages"][-1]["content"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": self._usage(body, len(text.split(" ")))}

    def _usage(self, body: dict, num_answer: int) -> dict:
        prompt = self.hidden + count_chat(body["messages"])
        if self.sees is not None:
            prompt = min(prompt, self.sees)
        return {"prompt_tokens": prompt, "completion_tokens": num_answer, "total_tokens": prompt + num_answer}

    async def _stream(self, response: web.StreamResponse, body: dict) -> None:
        text = self.draw(body) if self.draw else self.answer(body["messages"][-1]["content"])
        words = text.split(" ")
        for number, word in enumerate(words):
            delta = {"content": word if number == 0 else f" {word}"}
            told = {}
            if self.logprob and body.get("logprobs"):
                told = {"logprobs": {"content": [{"token": word, "logprob": self.logprob(body, word)}]}}
            await _send(response, {"choices": [{"index": 0, "delta": delta, **told, "finish_reason": None}]})
            if self.broken:
                self.broken -= 1
                await _send(response, {"error": {"message": "planted break"}})
                return
        await _send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage: dict = self._usage(body, len(words))
        if self.reuses is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.reuses}
        memory = {"fathom": {"kv_bytes": 0, "state_bytes": 64, "peak_bytes": 64}} if self.reports_memory else {}
        if body.get("stream_options", {}).get("include_usage"):
            await _send(response, {"choices": [], "usage": usage, **memory})
        await response.write(b"data: [DONE]\n\n")


async def _send(response: web.StreamResponse, chunk: dict) -> None:
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


@contextlib.asynccontextmanager
async def serving(planted: Planted, port: int = 0) -> AsyncIterator[str]:
    """Serve while in the context; gives the URL."""
    runner = web.AppRunner(planted.application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--delay-s", type=float, default=0.0)
    arguments = parser.parse_args()
    async with serving(Planted(log=arguments.log, delay_s=arguments.delay_s)) as url:
        print(url, flush=True)
        # Until whoever started it closes its input.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
