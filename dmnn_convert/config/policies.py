"""The names of policies, which calls and the command's help share."""

BUDGET_POLICIES = ("auto", "cascade", "level", "gates")
"""The policies that may meet a budget; "auto" stands for the best of them."""
