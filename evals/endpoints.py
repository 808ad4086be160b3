"""Where an endpoint is asked, by its name or its address: URLs, the variable of its key, and what it takes otherwise.

Knows no HTTP. What a server is found to refuse while it is asked is evals/dialect.py's; here stands what is known of it
beforehand. docs/evals-endpoints.md says what that is taken from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

# What was changed of a request, in the words in which a reader of the figures is told.
NO_STREAM_OPTIONS = "stream_options left out, as the endpoint refuses it: no token counts by the server"
OTHER_LIMIT = "max_completion_tokens sent in place of max_tokens"
NO_TEMPERATURE = "temperature left out, as the endpoint does not take 0: answers are drawn, not greedy"

REPLAY = "replay:"
CHAT, MODELS, TOKENIZE = "/chat/completions", "/models", "/tokenize"


@dataclass(frozen=True, slots=True)
class Preset:
    """An endpoint that has a name.

    base_url: what the chat's path is put behind. keys: environment variables, the first that is set holds the key.
    lists_models, tokenizes: whether it is asked for its models and for token counts. changes: of each request.
    note: what a user should know, a line.
    """

    base_url: str
    keys: tuple[str, ...] = ()
    lists_models: bool = True
    tokenizes: bool = False
    changes: tuple[str, ...] = ()
    note: str = ""


PRESETS: Mapping[str, Preset] = MappingProxyType({
    "openai": Preset(
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        changes=(OTHER_LIMIT,),
        note="models that think refuse a temperature: it is left out from the first refusal on",
    ),
    "anthropic": Preset(
        "https://api.anthropic.com/v1",
        ("ANTHROPIC_API_KEY",),
        lists_models=False,
        note="the layer for OpenAI's clients, made for comparisons; its list of models wants other headers",
    ),
    "google": Preset(
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        note="models are listed as models/NAME; either name is taken",
    ),
    "cerebras": Preset("https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",)),
    "together": Preset("https://api.together.xyz/v1", ("TOGETHER_API_KEY",)),
    "groq": Preset("https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    "mistral": Preset(
        "https://api.mistral.ai/v1",
        ("MISTRAL_API_KEY",),
        note="may refuse stream_options: it is left out from the first refusal on",
    ),
    "deepseek": Preset("https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",)),
    "openrouter": Preset("https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
    "fireworks": Preset(
        "https://api.fireworks.ai/inference/v1",
        ("FIREWORKS_API_KEY",),
        lists_models=False,
        note="its list lacks models that it serves, so it is not asked",
    ),
    "xai": Preset("https://api.x.ai/v1", ("XAI_API_KEY",)),
    "nvidia": Preset("https://integrate.api.nvidia.com/v1", ("NVIDIA_API_KEY",)),
    "ollama": Preset(
        "http://127.0.0.1:11434/v1",
        note="cuts prompts to its own context length: start it with OLLAMA_CONTEXT_LENGTH above the largest budget",
    ),
    "vllm": Preset("http://127.0.0.1:8000/v1", tokenizes=True),
    "sglang": Preset("http://127.0.0.1:30000/v1", tokenizes=True),
    "llamacpp": Preset("http://127.0.0.1:8080/v1", note="its /tokenize is another one: documents are estimated"),
    "lmstudio": Preset("http://127.0.0.1:1234/v1"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a name or an address means. models_url, tokenize_url: None where it is not asked for those.

    name: of the preset, or "replay"; empty for an address alone. root_url: the address without the protocol's own
    prefix.
    """

    name: str
    root_url: str
    chat_url: str
    models_url: str | None
    tokenize_url: str | None
    keys: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def replayed(self) -> Path | None:
        """The file of recorded answers that takes a server's place."""
        return Path(self.root_url.removeprefix(REPLAY)) if self.name == "replay" else None

    def find_key(self, given: str | None, environment: Mapping[str, str]) -> str | None:
        """What is given goes before what the environment has.

        Raises:
            ValueError: this endpoint takes a key, and there is none.
        """
        if given or not self.keys:
            return given
        key = next((environment[name] for name in self.keys if environment.get(name)), None)
        if key is None:
            raise ValueError(f"{self.name} takes a key: set {' or '.join(self.keys)}, or give --api-key")
        return key


@lru_cache(maxsize=64)
def parse_endpoint(text: str) -> Endpoint:
    """An endpoint by a preset's name, as `name=URL` (the preset at another address), or by an address.

    An address without a path gets /v1; any other is the base as it stands, with or without the chat's own path.

    Raises:
        ValueError: it is none of these.
    """
    if text.startswith(REPLAY):
        if text == REPLAY:
            raise ValueError(f"{REPLAY} needs the file of recorded answers behind it")
        return Endpoint("replay", text, "", None, None)
    name, equals, address = text.partition("=")
    preset = PRESETS.get(name)
    if preset is not None and not equals:
        return _endpoint(name, preset, preset.base_url)
    if preset is not None:
        return _endpoint(name, preset, _base(address))
    return _endpoint("", Preset("", tokenizes=True), _base(text))


def _endpoint(name: str, preset: Preset, base: str) -> Endpoint:
    root = base.removesuffix("/v1").rstrip("/")
    return Endpoint(
        name=name,
        root_url=root,
        chat_url=base + CHAT,
        models_url=base + MODELS if preset.lists_models else None,
        tokenize_url=root + TOKENIZE if preset.tokenizes else None,
        keys=preset.keys,
        changes=preset.changes,
    )


def _base(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "must be an http:// or https:// URL without a query, replay:FILE, or one of "
            f"{', '.join(PRESETS)}, got {address!r}"
        )
    base = address.rstrip("/").removesuffix(CHAT).rstrip("/")
    return base if urlsplit(base).path else f"{base}/v1"
