"""`fathom cache` against a real server, and against what is none."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from serving import ServerProcess
from typer.testing import CliRunner, Result

from fathom import app

MODEL = "embedded:mamba"


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["cache", *arguments], env={"FATHOM_API_KEY": None, "COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_the_table_and_the_json_say_the_same(server, client, suffix):
    of = ("--endpoint", f"{server.url}{suffix}", "--model", MODEL)
    cleared = run(*of, "--clear")
    assert (cleared.exit_code, cleared.stdout.startswith(f"{MODEL}: gave up 0 blocks (0 B) and ")) == (0, True)
    client.completions.create(model=MODEL, prompt="Ana Torres was born in " * 30, max_tokens=1)
    body = json.loads(run(*of, "--json").stdout)
    [entry] = body["entries"]
    table = run(*of)
    assert table.exit_code == 0
    assert "1 of 1 entries" in table.stdout
    row = next(line for line in table.stdout.splitlines() if "device" in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:2] == [f"{entry['tokens']:,}", "0 B"]
    assert f"of which kept for prompts that begin alike: {body['totals']['num_snapshots']}" in table.stdout
    freed = json.loads(run(*of, "--clear", "--json").stdout)["freed"]
    assert freed == {
        "num_blocks": 0,
        "kv_bytes": 0,
        "num_snapshots": entry["num_snapshots"],
        "state_bytes": entry["state_bytes"],
    }


@pytest.fixture
def stranger() -> Iterator[str]:
    """A web server of somebody else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def test_what_goes_wrong_is_told(server: ServerProcess, stranger: str):
    with socket.create_server(("127.0.0.1", 0)) as bound:
        free = f"http://127.0.0.1:{bound.getsockname()[1]}"
    for arguments, words in (
        (("--endpoint", free), f"--endpoint {free}: no answer: "),
        (("--endpoint", "nothing at all"), "--endpoint nothing at all: no answer: "),
        (("--endpoint", stranger), "what answers there (with status 200) has no /v1/fathom/cache"),
        (("--endpoint", f"{server.url}/elsewhere"), "what answers there (with status 404) has no /v1/fathom/cache"),
        (("--endpoint", server.url), "model: say which of embedded:transformer, embedded:mamba"),
        (("--endpoint", server.url, "--model", "gpt", "--clear"), "model: 'gpt' is not served here"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert "Traceback" not in result.output
