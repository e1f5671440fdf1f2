"""Derive dmnn_convert/categories/imagenet58.csv: ImageNet-1k's 1,000 classes in 58 big categories.

python tools/imagenet58.py --wordnet /usr/share/wordnet

The paper has 58 categories "with the help of the hierarchical structure of ImageNet", and does not
say which. ImageNet's hierarchy is WordNet 3.0's nouns (Debian: `apt-get install wordnet-base`), a
class being a synset. The rule here:

1. The tree. Every class, and every synset above it, hangs under its first hypernym; so the tree
   ends in "entity" and has the classes as its leaves (no class lies under another).
2. A category is a synset at which the tree branches. A class belongs to the nearest category above
   it: where "terrier" and "dog" both are categories, "dog" holds the dogs that are not terriers
   (nor in another category below it) and is called "other dog". So classes that hang directly
   under a synset, which no cut into whole subtrees can group, are grouped with their nearest kin.
3. Of all choices of 58 categories, none of them empty, the table has the cheapest. A category of n
   classes costs n² · ⌊√m⌋, where m is the number of classes anywhere under its synset. n² alone
   would give the most equal sizes; the second factor makes leftovers dear where they have little
   in common ("other entity": m = 1,000) and cheap where they are alike ("other dog": m = 118).
   The search is exact, by dynamic programming over (categories below, classes still open), in
   integers and in a fixed order, so the file is the same on every machine.
4. A category is called by the first lemma of its synset, with its hypernym's in brackets where two
   categories would be called the same. Categories are numbered in the order of their first class.

WordNet 3.0 is Copyright 2006 by Princeton University, all rights reserved, and free to use, modify
and distribute under its licence: https://wordnet.princeton.edu/license-and-commercial-use
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from timm.data import ImageNetInfo

CATEGORIES = 58
TABLE = Path(__file__).parents[1] / "dmnn_convert" / "categories" / "imagenet58.csv"
NEVER = np.iinfo(np.int64).max // 4


class WordNet(NamedTuple):
    """The nouns: each synset's lemmas, and its first hypernym where it has one."""

    lemmas: dict[str, list[str]]
    hypernym: dict[str, str]


class Tree(NamedTuple):
    """The synsets at and above the classes, children in ascending order."""

    root: str
    children: dict[str, list[str]]
    size: dict[str, int]  # classes at or under a synset


def read_wordnet(folder: Path) -> WordNet:
    """Read data.noun, whose format `man 5WN wndb` describes."""
    lemmas, hypernym = {}, {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        synset, words = "n" + fields[0], int(fields[3], 16)
        lemmas[synset] = fields[4 : 4 + 2 * words : 2]
        pointers = fields[5 + 2 * words :]
        kinds, targets = pointers[0::4], pointers[1::4]
        above = (t for k, t in zip(kinds, targets, strict=False) if k in ("@", "@i"))
        if first := next(above, None):
            hypernym[synset] = "n" + first
    return WordNet(lemmas, hypernym)


def tree_of(classes: list[str], hypernym: dict[str, str]) -> Tree:
    """Hang every class under its chain of first hypernyms."""
    below: dict[str, set[str]] = {name: set() for name in classes}
    size: Counter[str] = Counter()
    for synset in classes:
        size[synset] += 1
        while synset in hypernym:
            below.setdefault(hypernym[synset], set()).add(synset)
            synset = hypernym[synset]
            size[synset] += 1
    (root,) = (name for name in below if name not in hypernym)
    return Tree(root, {name: sorted(found) for name, found in below.items()}, dict(size))


def cost(count: int, under: int) -> int:
    """Return what a category of `count` classes costs, with `under` classes below its synset."""
    return count * count * math.isqrt(under)


class Cut:
    """The cheapest choice of `count` categories.

    A table holds, for k categories (row) and u classes still without one (column), both in a
    subtree, the least cost of the categories; NEVER where there is no such choice.
    """

    def __init__(self, tree: Tree, count: int) -> None:
        self.tree, self.count = tree, count
        self.before: dict[str, list[np.ndarray]] = {}  # a synset's table before each child
        self.open: dict[str, np.ndarray] = {}  # ... after all of them
        self.table: dict[str, np.ndarray] = {}  # ... with the synset itself as a category or not
        self.solve(tree.root)
        self.cost = int(self.table[tree.root][count, 0])
        self.chosen: set[str] = set()
        self.choose(tree.root, count, 0)

    def solve(self, node: str) -> None:
        """Fill the tables of a subtree."""
        children = self.tree.children[node]
        if not children:
            self.table[node] = np.array([[NEVER, 0]])  # one class, open
            return
        total, self.before[node] = np.zeros((1, 1), np.int64), []
        for child in children:
            self.solve(child)
            self.before[node].append(total)
            total = self.join(total, self.table[child])
        self.open[node] = total
        self.table[node] = self.close(node) if len(children) > 1 else total

    def join(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the table of two subtrees side by side."""
        rows = min(self.count + 1, a.shape[0] + b.shape[0] - 1)
        both = np.full((rows, a.shape[1] + b.shape[1] - 1), NEVER)
        for k, u in np.argwhere(b < NEVER):
            part = both[k : k + a.shape[0], u : u + a.shape[1]]
            np.minimum(part, a[: len(part)] + b[k, u], out=part)
        return np.minimum(both, NEVER)

    def priced(self, node: str) -> np.ndarray:
        """Return the open table with the cost of the synset as the open classes' category."""
        counts = range(1, self.open[node].shape[1])
        prices = [NEVER, *(cost(count, self.tree.size[node]) for count in counts)]
        return self.open[node] + np.array(prices)

    def close(self, node: str) -> np.ndarray:
        """Return the table where the synset may be a category, which takes all open classes."""
        total = np.pad(self.open[node], ((0, 1), (0, 0)), constant_values=NEVER)
        total[1:, 0] = np.minimum(total[1:, 0], self.priced(node).min(1))
        return total[: self.count + 1]

    def choose(self, node: str, k: int, u: int) -> None:
        """Walk back down the tables, from k categories and u open classes."""
        if not self.tree.children[node]:
            return
        total = self.open[node]
        if k >= len(total) or total[k, u] != self.table[node][k, u]:
            self.chosen.add(node)
            k, u = k - 1, int(self.priced(node)[k - 1].argmin())
        children = self.tree.children[node]
        for child, before in reversed(list(zip(children, self.before[node], strict=True))):
            table = self.table[child][: k + 1, : u + 1]
            rest = np.full((k + 1, u + 1), NEVER)
            known = before[: k + 1, : u + 1]
            rest[: known.shape[0], : known.shape[1]] = known
            both = table + rest[::-1, ::-1][: table.shape[0], : table.shape[1]]
            i, j = np.unravel_index(both.argmin(), both.shape)
            self.choose(child, int(i), int(j))
            k, u = k - int(i), u - int(j)


def nearest(synset: str | None, chosen: set[str], hypernym: dict[str, str]) -> str | None:
    """Return the nearest chosen synset at or above one; None where there is none."""
    while synset is not None and synset not in chosen:
        synset = hypernym.get(synset)
    return synset


def names_of(chosen: set[str], wordnet: WordNet) -> dict[str, str]:
    """Return a unique, readable name for each chosen synset."""
    lemma = {synset: words[0].replace("_", " ") for synset, words in wordnet.lemmas.items()}
    shared = Counter(lemma[synset] for synset in chosen)
    above = {nearest(wordnet.hypernym.get(synset), chosen, wordnet.hypernym) for synset in chosen}
    names = {}
    for synset in chosen:
        other = "other " if synset in above else ""
        which = f" ({lemma[wordnet.hypernym[synset]]})" if shared[lemma[synset]] > 1 else ""
        names[synset] = f"{other}{lemma[synset]}{which}"
    return names


def table(classes: list[str], wordnet: WordNet, count: int) -> list[tuple[int, str, int, str]]:
    """Return the rows of the file: class, synset, category, name."""
    chosen = Cut(tree_of(classes, wordnet.hypernym), count).chosen
    names = names_of(chosen, wordnet)
    category = [nearest(synset, chosen, wordnet.hypernym) or "" for synset in classes]
    number = {found: i for i, found in enumerate(dict.fromkeys(category))}
    return [
        (index, synset, number[found], names[found])
        for index, (synset, found) in enumerate(zip(classes, category, strict=True))
    ]


def text(rows: list[tuple[int, str, int, str]]) -> str:
    """Return the rows as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("class", "synset", "category", "name"))
    writer.writerows(rows)
    return stream.getvalue()


def main() -> None:
    """Write the table into the package and print how large its categories are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of data.noun")
    parser.add_argument("--out", type=Path, default=TABLE, help="the file to write")
    options = parser.parse_args()
    rows = table(ImageNetInfo().label_names(), read_wordnet(options.wordnet), CATEGORIES)
    options.out.write_bytes(text(rows).encode())
    sizes = Counter((number, name) for _, _, number, name in rows)
    for (number, name), size in sizes.most_common():
        print(f"{size:4d}  {number:2d} {name}")
    low, middle, high = (f(sizes.values()) for f in (min, statistics.median, max))
    print(f"{len(sizes)} categories of {low} to {high} classes, median {middle:g}")


if __name__ == "__main__":
    main()
