"""Our conditions as tasks of lm-eval; `fathom eval lm-tasks` prints this directory, for its --include_path."""
