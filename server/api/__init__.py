"""The HTTP API: validate, ask an engine, answer in the protocol's own words."""
