"""Runs that start from a saved conversion, whose settings override a recipe's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..convert import Dynamized
from ..errors import ArgumentError
from ..io import Saved, load, read_saved, zoo
from .option_groups import NetworkOptions
from .recipe import Recipe


def resolved(recipe: Recipe) -> Recipe:
    """Return a recipe with all options of its conversion: the saved one's, if it names one.

    Raises:
        ArgumentError: for options that contradict it, or if the architecture is not known.
        CheckpointError: if the directory holds no saved conversion.
    """
    if recipe.converted is None:
        own = not recipe.trained and recipe.weights == "inherited" and brings_weights(recipe)
        return recipe.with_changes({"weights": "own"} if own else {}).settled()
    saved = read_saved(recipe.converted)
    described = _described(recipe, saved)
    _check_options(recipe, described, saved)
    return recipe.with_changes(described).settled()


def brings_weights(options: NetworkOptions) -> bool:
    """Return whether a user's factory brings weights: it always builds the same ones."""
    if options.arch is None or zoo.is_zoo_name(options.arch):
        return False
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = zoo.build(options.arch, num_classes=options.num_classes)
            states.append([p for p in model.parameters() if p.dim() > 1])
    same = (torch.equal(one, other) for one, other in zip(*states, strict=True))
    return bool(states[0]) and all(same)


def _described(recipe: Recipe, saved: Saved) -> dict[str, Any]:
    config, size = saved.config, saved.config.input_size
    if len(size) != 3 or size[1] != size[2]:
        raise ArgumentError(f"{recipe.converted}: is for images {size}; only square ones are read.")
    described = {
        "split": config.split,
        "tail_norm": config.tail_norm,
        "order": config.order,
        "spread": config.gate.spread,
        "certainty": config.gate.certainty,
        "hidden": config.gate.hidden,
        "normalized": config.gate.normalized,
        "chained": config.gate.chained,
        "tau": config.gate.tau,
        "init_rate": config.gate.init_rate,
        "input_size": size[-1],
        "weights": "inherited",
        "where": (),
        "arch": recipe.arch or _architecture(recipe, saved),
        "num_classes": saved.num_classes or recipe.num_classes,
    }
    # No recipe holds different numbers for different blocks.
    return described | {"n": config.N if isinstance(config.N, int) else None}


def _architecture(recipe: Recipe, saved: Saved) -> str:
    if saved.arch and zoo.is_zoo_name(saved.arch):
        return saved.arch
    named = f"names {saved.arch}, which is code; give it" if saved.arch else "names none; give one"
    raise ArgumentError(f"{recipe.converted}: the architecture is needed, but it {named}: --arch.")


def _check_options(recipe: Recipe, described: Mapping[str, Any], saved: Saved) -> None:
    """Check that no given option contradicts the conversion."""
    for name, theirs in described.items():
        mine = getattr(recipe, name)
        if mine not in (theirs, getattr(Recipe(), name)):
            flag, has = f"--{name.replace('_', '-')}", theirs
            if name == "n":
                flag, has = "-N", saved.config.N
            raise ArgumentError(
                f"{recipe.call(name)}: the conversion in {recipe.converted} was made already, "
                f"with {has!r}; leave {flag} out, or convert again without --converted."
            )


def load_converted(recipe: Recipe, categories: int | None) -> Dynamized:
    """Load the conversion that a resolved recipe starts from.

    Args:
        recipe: names its directory.
        categories: how many the controllers are to learn; None for no category heads.

    Raises:
        ArgumentError: if its category heads are for another number.
        CheckpointError: if it is damaged, or belongs to another network.
    """
    directory, arch = str(recipe.converted), str(recipe.arch)
    heads = read_saved(directory).config.num_categories
    if heads != categories:
        has, asked = ("none" if count is None else count for count in (heads, categories))
        raise ArgumentError(
            f"{recipe.call('categories')}: asks for {asked} categories, but the "
            f"conversion in {directory} has category heads for {has}; give others, or save it "
            "with dmnn_convert.save(..., category_heads=True)."
        )
    return load(directory, model=zoo.build(arch, num_classes=recipe.num_classes))
