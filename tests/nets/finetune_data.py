"""Small images, and a short run on them, for the tests of fine-tuning."""

from pathlib import Path

import numpy
from PIL import Image

from dmnn_convert.finetune import Recipe

NET = f"{Path(__file__).parent / 'tiny_net.py'}:tiny"
CLASSES = ("blue", "green", "red")


def image_folders(root, train=12, test=5, side=8):
    """Write train/ and test/ with three classes, each of a colour under noise."""
    random = numpy.random.default_rng(0)
    for folder, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 160, (side, side, 3))
                pixels[..., 2 - label] += 80
                Image.fromarray(pixels.astype("uint8")).save(root / folder / name / f"{i}.png")
    return root


def tiny_recipe(data, output, /, **changes):
    """Return the recipe of a short run on the CPU, on folders of images."""
    short = Recipe(
        arch=NET,
        data=str(data),
        input_size=8,
        epochs=2,
        batch_size=6,
        workers=0,
        device="cpu",
        output=str(output),
    )
    return short.with_changes(changes)
