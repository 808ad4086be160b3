"""A scripted endpoint for lm-eval's requests: bytes are its tokens, and it says what it read."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web

MODEL = "bytes"
FIRST_TOKEN = 256


@dataclass
class Scripted:
    """limit: of its context, which it tells. sees: the most tokens of a prompt that it reads, the last ones. dies: the
    number of answers after which it answers nothing. tokenizes, extra: whether it can, and generates a token behind
    what it scores.
    """

    limit: int | None = 4096
    sees: int | None = None
    dies: int | None = None
    tokenizes: bool = True
    extra: bool = True
    delay_s: float = 0.0
    asked: list[dict] = field(default_factory=list)

    @property
    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/completions", self._complete)
        if self.tokenizes:
            application.router.add_post("/tokenize", self._tokenize)
        return application

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "max_model_len": self.limit}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        tokens = [FIRST_TOKEN] * body["add_special_tokens"] + list(body["prompt"].encode())
        return web.json_response({"tokens": tokens, "count": len(tokens)})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.dies is not None and len(self.asked) >= self.dies:
            request.transport.abort()
            return web.Response()
        self.asked.append(body)
        await asyncio.sleep(self.delay_s)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [list(body["prompt"].encode())]
        seen = [prompt if self.sees is None else prompt[-self.sees :] for prompt in prompts]
        choices = [{"index": place, **self._choice(body, prompt)} for place, prompt in enumerate(seen)]
        usage = {"prompt_tokens": sum(map(len, seen)), "completion_tokens": len(seen)}
        return web.json_response({"choices": choices, "usage": usage})

    def _choice(self, body: dict, prompt: list[int]) -> dict:
        if not body.get("echo"):
            return {"text": f"{len(prompt)} tokens"}
        # The likelier the smaller a byte: sums can be computed by hand.
        scores = [None, *(-token / 256 for token in prompt[1:])] + [-1.0] * self.extra
        top = [None if score is None else {"x": max(score, -0.4)} for score in scores]
        return {"text": "", "logprobs": {"token_logprobs": scores, "top_logprobs": top}}


@contextlib.asynccontextmanager
async def scripted(endpoint: Scripted) -> AsyncIterator[str]:
    runner = web.AppRunner(endpoint.application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
