"""Accounting for what sequences remember: blocks, state slots and the plan that splits memory. No torch."""
