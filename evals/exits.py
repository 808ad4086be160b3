"""With what the commands of `fathom eval` end."""

EXIT_CONFIG = 2  # options that cannot be, or an endpoint that refuses all it is asked
EXIT_FAILED_SAMPLES = 3  # some requests failed: the same command asks them again
EXIT_INTERRUPTED = 130  # by Ctrl-C, as a shell says it
