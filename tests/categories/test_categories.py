"""Big categories: the published tables, clusters of a classifier, and a user's own file."""

import csv
import importlib.util
import itertools
import json
import os
import re
import string
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Residual
from timm.data import ImageNetInfo
from torch import nn

from dmnn_convert import (
    Categories,
    DmnnError,
    DMNNLoss,
    categories_from,
    cifar100,
    clusters,
    dynamize,
    imagenet58,
    read_categories,
    record_paths,
)
from dmnn_convert.errors import ArgumentError

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "dmnn_convert" / "categories" / "imagenet58.csv"
WORDNET = Path(os.environ.get("WORDNET", "/usr/share/wordnet"))
PETS = ("cat", "dog", "truck", "van")


def refused(*parts):
    """Expect an ArgumentError whose message holds the parts in this order."""
    return pytest.raises(ArgumentError, match="(?s)" + ".*".join(map(re.escape, parts)))


# --- the type ---------------------------------------------------------------------------------


def test_fields_become_tuples_and_stay():
    categories = Categories([0, 1, 1], ["a", "b"])
    assert categories.labels == (0, 1, 1)
    assert categories.names == ("a", "b")
    assert categories.count == 2
    assert categories == Categories((0, 1, 1), ("a", "b"))
    with pytest.raises(FrozenInstanceError):
        categories.labels = (0, 1)


def test_labels_may_come_from_a_tensor():
    assert Categories(torch.tensor([1, 0]), ("a", "b")).labels == (1, 0)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ((0, 2, -1), ("a", "b"), ("labels", "got -1, 2 for 2 names", "from 0 to 1")),
        ((0, 0), ("a", "b"), ("no class belongs to 'b'", "leave such names out")),
        ((0, 0.5), ("a", "b"), ("labels=(0, 0.5)", "one int for each class")),
        (3, ("a", "b"), ("labels=3", "one int for each class")),
        ((0, 0), ("a",), ("names=('a',)", "two or more")),
        ((0, 1), "ab", ("names='ab'", "two or more non-empty strings")),
        ((0, 1), ("a", ""), ("names=('a', '')", "non-empty")),
        ((0, 1), ("a", 1), ("names=('a', 1)", "strings")),
        ((0, 1), ("a", "a"), ("more than one category is called 'a'", "rename")),
    ],
)
def test_what_is_no_map_is_refused(labels, names, message):
    with refused("Categories(", *message):
        Categories(labels, names)


def test_messages_name_the_first_few():
    with refused("got 2, 3, 4, 5, 6 and 3 more for 2 names"):
        Categories(range(10), ("a", "b"))


def test_training_reads_them():
    categories = Categories((0, 1, 1), ("a", "b"))
    branch = (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(nn.Sequential(*branch)), *head)
    model, table = dynamize(net, input_size=(3, 8, 8), num_categories=categories.count)
    loss = DMNNLoss(table, target=0.5, categories=categories.labels)
    with record_paths(model.train()) as paths:
        logits = model(torch.randn(6, 3, 8, 8))
    parts = loss.parts(logits, torch.tensor([0, 1, 2, 0, 1, 2]), paths)
    assert parts.category > 0
    assert paths.category_logits[0].shape == (6, 2)


# --- ImageNet ---------------------------------------------------------------------------------

LABEL_OF = dict(zip(ImageNetInfo().label_names(), imagenet58().labels, strict=True))
SYNSETS = {
    "tabby": "n02123045",
    "lion": "n02129165",
    "Labrador": "n02099712",
    "golden retriever": "n02099601",
    "Airedale": "n02096051",
    "Norwich terrier": "n02094258",
    "pug": "n02110958",
    "trailer truck": "n04467665",
    "minivan": "n03770679",
    "airliner": "n02690373",
    "tench": "n01440764",
    "great white shark": "n01484850",
    "grand piano": "n03452741",
    "accordion": "n02672831",
    "orange": "n07747607",
    "broccoli": "n07714990",
    "volcano": "n09472597",
    "toilet tissue": "n15075141",
}


def test_imagenet_has_58_categories_and_each_class_once():
    categories = imagenet58()
    assert categories.count == 58
    assert len(categories.labels) == 1000
    assert len(set(categories.names)) == 58
    with TABLE.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["class"]) for row in rows] == list(range(1000))
    assert [row["synset"] for row in rows] == ImageNetInfo().label_names()
    named = [categories.names[label] for label in categories.labels]
    assert [row["name"] for row in rows] == named


def test_imagenet_categories_are_of_like_sizes():
    sizes = Counter(imagenet58().labels).values()
    assert min(sizes) >= 5
    assert max(sizes) <= 40


def test_imagenet_categories_are_numbered_by_first_class():
    assert list(dict.fromkeys(imagenet58().labels)) == list(range(58))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("tabby", "lion"),
        ("Labrador", "golden retriever"),
        ("Airedale", "Norwich terrier"),
        ("trailer truck", "minivan"),
        ("tench", "great white shark"),
        ("grand piano", "accordion"),
    ],
)
def test_kin_share_a_category(one, other):
    assert LABEL_OF[SYNSETS[one]] == LABEL_OF[SYNSETS[other]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Labrador", "trailer truck"),
        ("Labrador", "Airedale"),  # two kinds of dog
        ("tabby", "pug"),
        ("airliner", "minivan"),
        ("orange", "tench"),
        ("volcano", "toilet tissue"),
    ],
)
def test_strangers_do_not(one, other):
    assert LABEL_OF[SYNSETS[one]] != LABEL_OF[SYNSETS[other]]


@pytest.mark.parametrize(
    ("synset", "name"),
    [
        ("tench", "fish"),
        ("Airedale", "terrier"),
        ("pug", "other dog"),
        ("tabby", "feline"),
        ("grand piano", "musical instrument"),
        ("broccoli", "food (solid)"),
        ("toilet tissue", "other entity"),
    ],
)
def test_names_tell_what_is_in_a_category(synset, name):
    assert imagenet58().names[LABEL_OF[SYNSETS[synset]]] == name


# --- the script that made the table -----------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("imagenet58", ROOT / "tools" / "imagenet58.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(
    not (WORDNET / "data.noun").exists(),
    reason=f"no WordNet in {WORDNET}: install wordnet-base, or say where it is in $WORDNET",
)
def test_the_script_reproduces_the_table(script, tmp_path, monkeypatch, capsys):
    again = tmp_path / "again.csv"
    arguments = ["imagenet58.py", "--wordnet", str(WORDNET), "--out", str(again)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert again.read_bytes() == TABLE.read_bytes()
    assert "58 categories of 6 to 35 classes" in capsys.readouterr().out


@st.composite
def hierarchies(draw):
    """Parents of a few synsets, "0" being the root, and how many categories to choose."""
    count = draw(st.integers(4, 12))
    parents = {str(i): str(draw(st.integers(0, i - 1))) for i in range(1, count)}
    leaves = [name for name in map(str, range(1, count)) if name not in parents.values()]
    return parents, sorted(leaves), draw(st.integers(1, 4))


def cut_cost(script, tree, parents, leaves, chosen):
    """What a choice of categories costs; None where a class or a category is left without."""
    nearest = [script.nearest(leaf, chosen, parents) for leaf in leaves]
    if None in nearest or set(nearest) != chosen:
        return None
    return sum(script.cost(n, tree.size[name]) for name, n in Counter(nearest).items())


@settings(deadline=None, max_examples=150)
@given(case=hierarchies())
def test_the_script_finds_the_cheapest_choice(script, case):
    parents, leaves, count = case
    tree = script.tree_of(leaves, parents)
    forks = [name for name, children in tree.children.items() if len(children) > 1]
    choices = map(set, itertools.combinations(forks, count))
    costs = [cut_cost(script, tree, parents, leaves, chosen) for chosen in choices]
    costs = [cost for cost in costs if cost is not None]
    if costs:
        cut = script.Cut(tree, count)
        assert cut.cost == min(costs)
        assert len(cut.chosen) == count
        assert cut_cost(script, tree, parents, leaves, cut.chosen) == cut.cost


NOUNS = """\
  1 a licence
00000001 03 n 01 entity 0 000 | all
00000002 03 n 02 solid_food 0 food 0 001 @ 00000001 n 0000 | food
00000003 03 n 01 vessel 0 001 @ 00000001 n 0000 | ship
00000004 03 n 01 pot 0 001 @ 00000001 n 0000 | pot
00000005 03 n 01 vessel 0 002 ~ 00000001 n 0000 @ 00000004 n 0000 | jar; "old | new"
""" + "".join(
    f"{i:08d} 03 n 01 leaf 0 003 @ {parent:08d} n 0000 @i 00000001 n 0000 ! 00000003 n 0101 | x\n"
    for i, parent in enumerate((1, 1, 2, 2, 2, 3, 3, 5, 5), 10)
)


def test_the_script_reads_wordnet_and_names_categories(script, tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS, encoding="utf-8")
    rows = script.table([f"n{i:08d}" for i in range(10, 19)], script.read_wordnet(tmp_path), 4)
    assert [row[0] for row in rows] == list(range(9))
    assert [row[2] for row in rows] == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert list(dict.fromkeys(row[3] for row in rows)) == [
        *("other entity", "solid food", "vessel (entity)", "vessel (pot)")
    ]
    assert script.text(rows).startswith("class,synset,category,name\n0,n00000010,0,other entity\n")


# --- CIFAR-100 --------------------------------------------------------------------------------

# The data set's own coarse labels of its fine ones.
COARSE = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
)


def test_cifar100_has_the_data_sets_own_superclasses():
    categories = cifar100()
    assert categories.labels == COARSE
    assert categories.count == 20
    assert set(Counter(categories.labels).values()) == {5}


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "fruit and vegetables"),  # apple
        (4, "aquatic mammals"),  # beaver
        (8, "vehicles 1"),  # bicycle
        (41, "vehicles 2"),  # lawn mower
        (47, "trees"),  # maple tree
        (99, "non-insect invertebrates"),  # worm
    ],
)
def test_cifar100_spot_checks(index, name):
    categories = cifar100()
    assert categories.names[categories.labels[index]] == name


# --- clusters ---------------------------------------------------------------------------------

OBVIOUS = torch.tensor([[9.0, 0.1], [-1.0, 8.0], [1.0, 0.0], [-0.1, 1.0], [-3.0, 0.5]])


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight.clone()
    return layer


def pointwise(weight):
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight.data = weight.clone()[:, :, None, None]
    return layer


@pytest.mark.parametrize("form", [torch.clone, linear, pointwise])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_of_one_direction_are_one_cluster(form, dtype):
    found = clusters(form(OBVIOUS.to(dtype)), 3)
    assert found == Categories((0, 1, 0, 1, 2), ("cluster 0", "cluster 1", "cluster 2"))


def test_clusters_are_called_by_their_classes():
    found = clusters(OBVIOUS, 2, ["cat", "truck", "dog", "van", "owl"])
    assert found.labels == (0, 1, 0, 1, 1)
    assert found.names == ("cluster 0 (cat, dog)", "cluster 1 (truck, van, owl)")
    many = clusters(torch.tensor([[1.0]] * 5 + [[-1.0]]), 2, list("abcdef"))
    assert many.names == ("cluster 0 (a, b, c, …)", "cluster 1 (f)")


def test_only_the_direction_of_a_row_matters():
    torch.manual_seed(0)
    weight = torch.randn(20, 8)
    found = clusters(weight, 4)
    assert found == clusters(weight, 4)
    assert found == clusters(weight * torch.rand(20, 1).add(0.1), 4)


@pytest.mark.parametrize("K", [2, 3, 6])
def test_equal_rows_still_give_as_many_clusters_as_asked_for(K):
    found = clusters(torch.ones(6, 3), K)
    assert found.count == K
    assert list(dict.fromkeys(found.labels)) == list(range(K))


@pytest.mark.parametrize(
    ("classifier", "K", "names", "message"),
    [
        (OBVIOUS, 1, None, ("K=1 for 5 classes", "from 2 to")),
        (OBVIOUS, 6, None, ("K=6 for 5 classes", "from 2 to")),
        (OBVIOUS, 2.0, None, ("K=2.0", "an int")),
        (OBVIOUS, True, None, ("K=True", "an int")),
        (OBVIOUS, 2, ["a"], ("got 1 class_names for 5 classes", "one for each")),
        (OBVIOUS * torch.nan, 2, None, ("no finite weights", "trained")),
        (torch.ones(3), 2, None, ("a Tensor of shape (3,)", "nn.Linear")),
        (nn.ReLU(), 2, None, ("got a ReLU", "nn.Linear")),
        (nn.Conv2d(2, 5, 3), 2, None, ("got a Conv2d", "1x1 convolution")),
        (nn.LazyLinear(5), 2, None, ("got a LazyLinear", "nn.Linear")),
        (nn.Linear(2, 5, device="meta"), 2, None, ("no finite weights", "trained")),
    ],
)
def test_what_cannot_be_clustered_is_refused(classifier, K, names, message):
    with refused("clusters: ", *message):
        clusters(classifier, K, names)


def test_scikit_learn_is_asked_for_only_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with refused("clusters: needs scikit-learn", 'pip install "dmnn-convert[finetune]"'):
        clusters(OBVIOUS, 2)
    assert categories_from("cifar100", num_classes=100).count == 20


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    def write(text, name="categories.json"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


ANIMALS = Categories((0, 0, 1, 1), ("animal", "vehicle"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"truck": "vehicle", "cat": "animal", "dog": " animal", "van": "vehicle"}'),
        ("a.json", '{"2": "vehicle", "0": "animal", "dog": "animal", "3": "vehicle"}'),
        ("a.json", '["animal", "animal", "vehicle", "vehicle"]'),
        ("A.JSON", '\ufeff["animal", "animal", "vehicle", "vehicle"]'),
        ("a.csv", "truck,vehicle\ncat,animal\ndog,animal\nvan,vehicle\n"),
        ("a.csv", "Class, Category\r\ntruck, vehicle\r\n\r\ncat,animal\r\ndog,animal\r\n3,vehicle"),
        ("a.csv", '\ufeff"cat","animal"\n 1 , animal \n2,vehicle\n3,vehicle\n'),
    ],
)
def test_files_of_all_forms_say_the_same(written, name, text):
    assert read_categories(written(text, name), PETS, 4) == ANIMALS


def test_indices_do_without_names(written):
    file = written('{"0": "animal", "1": "animal", "2": "vehicle", "3": "vehicle"}')
    assert read_categories(str(file), None, 4) == ANIMALS


def test_numbers_keep_their_order(written):
    expected = Categories((2, 0, 1, 0), ("2", "7", "10"))
    assert read_categories(written("[10, 2, 7, 2]"), PETS, 4) == expected
    assert read_categories(written("0,10\n1,2\n2,7\n3,02", "a.csv"), None, 4) == expected
    mixed = Categories((0, 1, 2, 1), ("10", "a", "7"))
    assert read_categories(written('[10, "a", "7", "a"]'), PETS, 4) == mixed


def test_a_name_goes_before_an_index(written):
    file = written('{"1": "odd", "0": "even", "2": "even"}')
    found = read_categories(file, ("2", "0", "1"), 3)
    assert [found.names[label] for label in found.labels] == ["even", "even", "odd"]


def test_a_class_may_be_called_class(written):
    file = written("class,category\npupil,person\n", "a.csv")
    assert read_categories(file, ("class", "pupil"), 2).names == ("category", "person")


TEXT = st.text(string.ascii_letters + string.digits + " ,\"'äß→", min_size=1, max_size=8)
WORDS = TEXT.map(str.strip).filter(bool)


@st.composite
def maps(draw):
    """Class names, and a category's name for each; two or more categories."""
    names = draw(st.lists(WORDS, min_size=2, max_size=8, unique=True))
    known = draw(st.lists(WORDS.filter(str.isalpha), min_size=2, max_size=4, unique=True))
    given = [draw(st.sampled_from(known)) for _ in names]
    return names, [known[0], known[1], *given[2:]]


@settings(deadline=None)
@given(case=maps(), form=st.sampled_from(["list", "object", "csv"]), random=st.randoms())
def test_what_was_written_is_read(tmp_path_factory, case, form, random):
    names, given = case
    pairs = list(zip(names, given, strict=True))
    random.shuffle(pairs)
    file = tmp_path_factory.mktemp("files") / ("a.csv" if form == "csv" else "a.json")
    with file.open("w", encoding="utf-8", newline="") as stream:
        if form == "csv":
            csv.writer(stream).writerows([("class", "category"), *pairs])
        else:
            json.dump(given if form == "list" else dict(pairs), stream)
    found = read_categories(file, names, len(names))
    assert [found.names[label] for label in found.labels] == given
    assert found.names == tuple(dict.fromkeys(given))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"cat": "a", "dog": "b"}', ("2 of 4 classes", "'truck', 'van'", "every")),
        ("a.csv", "cat,a\n", ("3 of 4 classes have no category", "'dog', 'truck', 'van'")),
        ("a.csv", "class,category\n", ("4 of 4 classes have no category",)),
        ("a.json", "{}", ("4 of 4 classes have no category",)),
        ("a.json", '{"cat": "a", "cow": "b", "4": "b"}', ("unknown classes 'cow', '4'", "'cat'")),
        ("a.csv", "name,kind\ncat,a\n", ("unknown classes 'name'", "known are 'cat', 'dog'")),
        ("a.json", '{"cat": "a", "cat": "b"}', ("given twice: 'cat'", "one of each")),
        ("a.json", '{"dog": "a", "1": "a"}', ("given twice: 'dog'",)),
        ("a.csv", "cat,a\ncat,a\n", ("given twice: 'cat'",)),
        ("a.csv", "cat,a,b\n", ("['cat', 'a', 'b'] has 3 columns", "give two")),
        ("a.csv", 'cat,"a\n', ("not valid CSV",)),
        ("a.csv", "cat,a\ndog,\ntruck,b\nvan,b\n", ("got '' for a category", "a name or a")),
        ("a.json", '["a", "b"]', ("a list of 2 categories for 4 classes", "class order")),
        ("a.json", '["a", "b", "c", true]', ("got True for a category",)),
        ("a.json", '["a", "b", "c", 1.5]', ("got 1.5 for a category", "whole number")),
        ("a.json", '["a", "b", "c", {}]', ("got () for a category",)),
        ("a.json", '["a", "a", "a", "a"]', ("all classes have one category, 'a'", "two or more")),
        ("a.json", '"a"', ("holds a str", "give an object")),
        ("a.json", '{"cat"', ("not valid JSON",)),
        ("a.json", "[" * 100_000, ("not valid JSON",)),
        ("a.json", " \n", ("is empty",)),
        ("a.csv", "", ("is empty",)),
        ("a.yaml", "cat: a", ("JSON or CSV?", ".json or .csv")),
    ],
)
def test_bad_files_are_told_the_remedy(written, name, text, message):
    file = written(text, name)
    with refused(str(file), *message):
        read_categories(file, PETS, 4)


def test_unknown_indices_are_told_the_range(written):
    with refused("unknown classes '3'", "known are 0 to 2"):
        read_categories(written('{"0": "a", "1": "b", "3": "c"}'), None, 3)


def test_many_missing_classes_are_counted(written):
    with refused("998 of 1000 classes", ": 2, 3, 4, 5, 6 and 993 more"):
        read_categories(written('{"0": "a", "1": "b"}'), None, 1000)


def test_a_name_of_two_classes_is_ambiguous(written):
    file = written('{"crane": "a", "crow": "b"}')
    with refused("2 classes are called 'crane'", "indices, 0, 2"):
        read_categories(file, ("crane", "crow", "crane"), 3)
    indices = written('{"0": "bird", "crow": "bird", "2": "machine"}')
    assert read_categories(indices, ("crane", "crow", "crane"), 3).labels == (0, 0, 1)


def test_unreadable_files_are_refused(tmp_path):
    with refused("none.csv", "cannot be read"):
        read_categories(tmp_path / "none.csv", PETS, 4)
    (tmp_path / "folder.json").mkdir()
    with refused("folder.json", "cannot be read"):
        read_categories(tmp_path / "folder.json", PETS, 4)
    (tmp_path / "latin.csv").write_bytes("käse,a".encode("latin-1"))
    with refused("latin.csv", "cannot be read", "UTF-8"):
        read_categories(tmp_path / "latin.csv", PETS, 4)


def test_class_names_must_fit_the_classes(written):
    with refused("read_categories(", "got 4 class_names for 5 classes"):
        read_categories(written("[]"), PETS, 5)


# --- words ------------------------------------------------------------------------------------


def test_words_give_the_published_tables():
    assert categories_from("imagenet58", num_classes=1000) == imagenet58()
    synsets = ImageNetInfo().label_names()
    assert categories_from("imagenet58", num_classes=1000, class_names=synsets) == imagenet58()
    assert categories_from("cifar100", num_classes=100) == cifar100()


def test_a_path_gives_the_file(written):
    file = written('["animal", "animal", "vehicle", "vehicle"]')
    for spec in (file, str(file)):
        assert categories_from(spec, num_classes=4, class_names=PETS) == ANIMALS


def test_clusters_are_of_the_last_layer_that_fits():
    hidden, head = nn.Linear(2, 5), linear(OBVIOUS)
    model = nn.Sequential(hidden, nn.Linear(5, 2), head, nn.Linear(5, 3))
    found = categories_from("clusters:3", num_classes=5, classifier=model)
    assert found.labels == (0, 1, 0, 1, 2)
    grouped = nn.Sequential(pointwise(OBVIOUS), nn.Conv2d(5, 5, 1, groups=5), nn.Conv2d(5, 5, 3))
    assert categories_from("clusters:3", num_classes=5, classifier=grouped) == found
    named = categories_from("clusters:2", num_classes=5, classifier=head, class_names="abcde")
    assert named.names == ("cluster 0 (a, c)", "cluster 1 (b, d, e)")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("imagenet58", {"num_classes": 10}, ("is for 1000 classes", "there are 10", "clusters:K")),
        ("cifar100", {"num_classes": 10}, ("is for 100 classes", "there are 10", "clusters:K")),
        ("clusters:1", {"num_classes": 5}, ("clusters:1", "from 2 to 5")),
        ("clusters:6", {"num_classes": 5}, ("clusters:6", "from 2 to 5")),
        ("clusters:", {"num_classes": 5}, ("from 2 to 5", '"clusters:20"')),
        ("clusters", {"num_classes": 5}, ("from 2 to 5",)),
        ("clusters:two", {"num_classes": 5}, ("clusters:two", "from 2 to 5")),
        ("clusters:-3", {"num_classes": 5}, ("from 2 to 5",)),
        ("clusters:2", {"num_classes": 5}, ("no model", "classifier=")),
        ("imagenet85", {"num_classes": 5}, ("'imagenet85'", "no such file", '"imagenet58"')),
        ("gone.csv", {"num_classes": 5}, ("'gone.csv'", "no such file", '"cifar100"')),
        ("", {"num_classes": 5}, ("no such file",)),
        (58, {"num_classes": 5}, ("'58'", "got a int", '"imagenet58"')),
        ("cifar100", {"num_classes": 100, "class_names": PETS}, ("4 class_names for 100",)),
    ],
)
def test_words_that_do_not_fit_are_refused(spec, options, message):
    with refused("categories_from(", *message):
        categories_from(spec, **options)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 7), nn.ReLU()), ("Sequential has no", "5 outputs", "has 7")),
        (nn.ReLU(), ("ReLU has no", "no such layer at all", "trained on these classes")),
    ],
)
def test_a_model_without_such_a_layer_is_refused(model, message):
    with refused("clusters: ", *message):
        categories_from("clusters:2", num_classes=5, classifier=model)


def test_published_tables_insist_on_the_order_of_classes():
    backwards = ImageNetInfo().label_names()[::-1]
    with refused('"imagenet58"', "another order than n01440764", "sort them"):
        categories_from("imagenet58", num_classes=1000, class_names=backwards)


def test_errors_can_be_caught_as_the_librarys():
    with pytest.raises(DmnnError):
        categories_from("nothing", num_classes=2)
