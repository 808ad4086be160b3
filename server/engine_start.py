"""How an engine process begins: out of reach of the terminal's interrupts before anything takes its time.

python -m server.engine_start, with the options of server.engine_process
"""

import os
import runpy


def main() -> None:
    # A group of its own, but not a session: systems that share processors among sessions first (Linux's autogroups)
    # would set the threads that compute against the server's, which cost a third of the tokens on two cores.
    os.setpgid(0, 0)
    runpy.run_module("server.engine_process", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
