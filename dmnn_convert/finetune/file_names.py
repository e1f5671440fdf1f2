"""Names of the files that a run keeps in its folder."""

CONFIG = "recipe.yaml"


RESULT = "result.json"


LAST = "last.pt"
"""The state after the last step, which `--resume` reads."""
