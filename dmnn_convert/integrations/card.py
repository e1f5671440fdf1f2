"""The card of a saved network: what it is, what it costs, how it was made, how to load it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..evaluation import DenseEvaluation, Evaluation
from ..finetune import Recipe
from ..flops import FlopsTable
from ..foreign import parsed_json, text_of
from ..io import CASCADE, CONFIG, LEVEL, zoo
from ..report import Curve

TABLE = "flops.json"

_KINDS = {
    CONFIG: ("dynamic network", "model, table"),
    CASCADE: ("cascade of networks", "cascade"),
    LEVEL: ("level, a plain narrower network", "network"),
}

_PRIVATE = frozenset(
    {
        *("data", "output", "checkpoint", "teacher_checkpoint", "converted", "device", "workers"),
        *("save_minutes", "track", "arch", "teacher"),
    }
)
"""Options that are paths of the author's machine, or say nothing about the network."""


def kind_in(directory: Path) -> str:
    """Return the name of the file that describes a saved network.

    Raises:
        ArgumentError: if it holds no saved network.
    """
    found = [name for name in _KINDS if (directory / name).is_file()]
    if len(found) != 1:
        held = "two" if found else "none"
        raise ArgumentError(
            f"{directory}: holds {held} of {', '.join(_KINDS)}; give a directory that save, "
            "save_level or Cascade.save wrote."
        )
    return found[0]


def model_card(
    directory: str | os.PathLike[str],
    name: str,
    *,
    results: DenseEvaluation | None = None,
    recipe: Recipe | None = None,
    curve: Curve | None = None,
    license: str | None = None,
    source: str | None = None,
) -> str:
    """Return the card of a saved network, as Markdown with a head in YAML.

    Args:
        directory: the output of `save`, `save_level` or `Cascade.save`.
        name: the name to load it by, "user/name".
        results: its evaluation.
        recipe: the options that it was trained with.
        curve: its results at other budgets.
        license: of the source's weights, which also applies to the network, as the Hub names it.
        source: where the source's weights came from.

    Raises:
        ArgumentError: if the directory holds no saved network, or it is described wrongly.

    Example:
        >>> save(model, "converted")
        >>> "FLOPs" in model_card("converted", "me/net", license="mit")
        True
    """
    folder = Path(directory)
    kind = kind_in(folder)
    described = _json_of(folder / kind)
    what, result = _KINDS[kind]
    arch = described.get("arch")
    if not (isinstance(arch, str) and zoo.is_zoo_name(arch)):
        arch = None  # a file of the author's
    given = f'"{name}"' if arch else f'"{name}", model=source'
    parts = [
        _head(license, results, name),
        f"# {name.rpartition('/')[2]}\n\nA {what}, converted by dmnn-convert"
        + (f" from `{arch}`." if arch else " from its author's own network.")
        + (f" Weights of the source: {source}." if source else ""),
        "## Load\n\n```python\nfrom dmnn_convert import from_pretrained\n\n"
        f"{result} = from_pretrained({given})\n```",
        _results(results),
        _curve(curve),
        _flops(folder / TABLE),
        _fitted(described) if kind == CASCADE else "",
        _recipe(recipe),
        _license(license),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(license: str | None, results: DenseEvaluation | None, name: str) -> str:
    lines = ["library_name: dmnn-convert", "pipeline_tag: image-classification"]
    lines += ["tags:", "- dynamic-neural-network", "- conditional-computation"]
    if license:
        lines.insert(0, f"license: {json.dumps(license)}")
    if results is not None:
        lines += [
            "model-index:",
            f"- name: {json.dumps(name)}",
            "  results:",
            "  - task: {type: image-classification}",
            "    dataset: {name: held-out images, type: custom}",
            f"    metrics: [{{type: accuracy, value: {results.top1 / 100:.4f}}}]",
        ]
    return "\n".join(["---", *lines, "---"])


def _results(results: DenseEvaluation | None) -> str:
    if results is None:
        return ""
    rows = [("images", f"{results.images:,}"), ("top-1", f"{results.top1:.2f} %")]
    if results.top5 is not None:
        rows.append(("top-5", f"{results.top5:.2f} %"))
    if isinstance(results, Evaluation):
        network, gated = results.network_flops_ratio, results.flops_ratio
        rows.append(("FLOPs over the source's", f"{network.mean:.3f} ± {network.std:.3f}"))
        rows.append(("gated FLOPs over all gates on", f"{gated.mean:.3f} ± {gated.std:.3f}"))
        rows.append(("distinct paths", f"{results.distinct_paths:,}"))
    return "## Results\n\n" + _markdown(("", ""), rows)


def _curve(curve: Curve | None) -> str:
    if curve is None:
        return ""
    rows = [(r.policy, r.name, f"{r.flops_ratio:.3f}", f"{r.top1:.2f} %") for r in curve.rows]
    return "## Budgets\n\n" + _markdown(("policy", "of", "FLOPs over the source's", "top-1"), rows)


def _flops(file: Path) -> str:
    if not file.is_file():
        return ""
    table = FlopsTable.from_json(text_of(file))
    title = "## FLOPs\n\nMultiply-accumulates of one image"
    return f"{title} {' × '.join(map(str, table.input_size))}.\n\n```\n{table}\n```"


def _fitted(described: Mapping[str, Any]) -> str:
    fitted = described.get("fitted")
    if not isinstance(fitted, Mapping):
        return ""
    shares = ", ".join(f"{100 * share:.1f} %" for share in fitted["shares"])
    return (
        "## Fit\n\nOn the held-out images that its thresholds were chosen on: top-1 "
        f"{fitted['top1']:.2f} % at {fitted['flops_ratio']:.3f} of the source's FLOPs; its "
        f"networks answered {shares} of them."
    )


def _recipe(recipe: Recipe | None) -> str:
    if recipe is None:
        return ""
    default = Recipe().to_dict()
    own = {k: v for k, v in recipe.to_dict().items() if k not in _PRIVATE and v != default[k]}
    lines = [f"{name}: {json.dumps(value)}" for name, value in own.items()]
    return "## Recipe\n\nOptions of `dmnn-convert finetune` that are not its defaults.\n\n" + (
        "```yaml\n" + "\n".join(lines) + "\n```"
    )


def _license(license: str | None) -> str:
    if license is None:
        return (
            "## Licence\n\nNot stated. The licence of the source's weights applies to this network "
            "as well; ask the author."
        )
    return f"## Licence\n\n{license}, as the source's weights."


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _json_of(file: Path) -> Mapping[str, Any]:
    try:
        found = parsed_json(text_of(file))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{file}: cannot be read ({error}); save it again.") from error
    if not isinstance(found, Mapping):
        raise ArgumentError(f"{file}: describes no saved network; save it again.")
    return found
