"""Which worker runs what: tests that share something dear go to one worker, whole and first; the others fill the gaps.

pytest-xdist knows groups as well, but writes them into node ids, which pytest 9.2 does not let it do: they have no
effect there. No mark reaches the process that deals tests out, so files are named here.
"""

from xdist.scheduler import LoadScopeScheduling

# What they share is made once, in the worker that gets them.
TOGETHER: dict[str, tuple[str, ...]] = {
    "one server with both models": (
        "tests/server/test_api.py",
        "tests/server/test_cache_command.py",
        "tests/server/test_caching.py",
        "tests/server/test_choices.py",
        "tests/server/test_end_to_end.py",
        "tests/server/test_logprobs.py",
        "tests/server/test_reference.py",
        "tests/server/test_requests.py",
    ),
    "checkpoints of all families": ("tests/models/test_exactness.py", "tests/models/test_digest.py"),
    "strangers' checkpoints": ("tests/server/test_served_checkpoints.py",),
    "engine processes": ("tests/server/test_process.py",),
    "eval runs": ("tests/evals/test_cli.py",),
    "demo": ("tests/test_demo.py",),
    "headline": ("tests/test_headline.py",),
}


class Dealing(LoadScopeScheduling):
    """Groups by name, all other tests one by one. The largest units go first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((name for name, files in TOGETHER.items() if file in files), nodeid)
