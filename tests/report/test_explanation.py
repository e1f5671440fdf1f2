"""Reports on single images: their costs are those of their gates or exits, whatever the batches."""

import csv
import html.parser
import json
from pathlib import Path

import pytest
import torch
from quick import one_in
from small_nets import NETS, images, seasoned
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_processes import in_two_processes, needs_gloo

from dmnn_convert import (
    ArgumentError,
    Cascade,
    Categories,
    dynamize,
    explain,
    freeze,
    record_exits,
    record_paths,
    shard,
)
from dmnn_convert.nn import controllers

COUNT = 23
CATEGORIES = Categories((0, 0, 1, 1, 1), ("some & more", "others"))


def everything():
    torch.manual_seed(0)
    model, table = dynamize(seasoned(NETS["basic"]()), 2, split="exact", input_size=(3, 8, 8))
    for controller in controllers(model):
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    return model.eval(), table, TensorDataset(images(COUNT), torch.arange(COUNT) % 5)


def cascade_of(model, data):
    small, large = freeze(model, 0.5), freeze(model, 1.0)
    with torch.no_grad():
        first, second = small(data.tensors[0]).softmax(-1).topk(2).values.T
    return Cascade([small, large], [float((first - second).median())])


def rows_of(file):
    with Path(file).open(newline="") as opened:
        return list(csv.DictReader(opened))


class Page(html.parser.HTMLParser):
    """What a page shows, and what it asks for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words, self.figures = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.sources += [v for k, v in values.items() if k in ("src", "href")]
        if tag == "figure":
            self.figures.append(values["title"])

    def handle_data(self, data):
        self.words.append(data.strip())


def test_rows_are_the_gates_and_costs_of_each_image(tmp_path):
    model, table, data = everything()
    found = explain(model, DataLoader(data, 7), tmp_path / "images.csv", names=map(str, range(99)))
    with record_paths(model) as paths, torch.no_grad():
        logits = model(data.tensors[0])
    rows = rows_of(tmp_path / "images.csv")
    assert [row["image"] for row in rows] == [str(i) for i in range(COUNT)]
    assert [int(row["answer"]) for row in rows] == logits.argmax(1).tolist()
    gates = [[int(bit) for bit in row["path"].replace("|", "")] for row in rows]
    assert gates == paths.gates.int().tolist()
    assert {len(part) for part in rows[0]["path"].split("|")} == set(table.sizes)
    macs = table.network_flops(paths.gates)
    assert [int(row["macs"]) for row in rows] == macs.round().long().tolist()
    first, second = logits.softmax(-1).topk(2).values.T
    margins = torch.tensor([float(row["confidence"]) for row in rows])
    torch.testing.assert_close(margins, first - second, atol=1e-5, rtol=0)
    right = sum(int(row["right"]) for row in rows)
    assert found.evaluation.top1 == pytest.approx(100 * right / COUNT)
    assert found.flops_ratio == pytest.approx(found.evaluation.network_flops_ratio.mean)
    assert found.exits == ()


def test_a_page_shows_the_easiest_and_hardest_and_asks_for_nothing(tmp_path):
    model, table, data = everything()
    options = {"categories": CATEGORIES, "each": 2, "classes": [*"ab<c", "d&", "e"][-5:]}
    files = [tmp_path / "images.html", tmp_path / "images.csv"]
    explain(model, DataLoader(data, 7), files, title="<net>", **options)
    page = Page(files[0].read_text())
    assert "script" not in page.tags
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert page.words.count("<net>") == 2
    assert page.tags.count("img") == 5 * 2 * 2
    rows = rows_of(files[1])
    for label in {row["label"] for row in rows}:
        own = sorted(
            (row for row in rows if row["label"] == label),
            key=lambda row: (float(row["flops_ratio"]), -float(row["confidence"])),
        )
        start = page.words.index(label, page.words.index("others"))
        assert start
        shown = [row["image"] + " " + row["path"] for row in (*own[:2], *own[:-3:-1])]
        position = page.figures.index(shown[0])
        assert page.figures[position : position + 4] == shown
    # Rates by category: of all images, as the evaluation has them.
    start = page.words.index("some & more")
    with record_paths(model) as paths, torch.no_grad():
        model(data.tensors[0])
    mine = paths.gates[data.tensors[1] < 2].mean(0)
    cells = [word for word in page.words[start:] if word][4 : 4 + len(table.rows)]
    assert cells == [f"{100 * rate:.0f}" for rate in mine.tolist()]


def test_a_cascade_shows_which_network_answered(tmp_path):
    model, _, data = everything()
    cascade = cascade_of(model, data)
    files = [tmp_path / "images.csv", tmp_path / "images.html"]
    dense = 123_456
    found = explain(cascade, DataLoader(data, 5), files, dense_macs=dense)
    with record_exits(cascade) as exits, torch.no_grad():
        cascade(data.tensors[0])
    rows = rows_of(files[0])
    assert [int(row["level"]) for row in rows] == exits.levels.tolist()
    assert {row["path"] for row in rows} == {""}
    by_level = {row["level"]: int(row["macs"]) for row in rows}
    assert set(by_level) == {"0", "1"}
    assert by_level["1"] > 1.5 * by_level["0"]
    shares = [float((exits.levels == i).double().mean()) for i in (0, 1)]
    assert [exit.share for exit in found.exits] == pytest.approx(shares)
    mean = sum(int(row["macs"]) for row in rows) / COUNT / dense
    assert found.flops_ratio == pytest.approx(mean)
    assert "Networks of the cascade" in Page(files[1].read_text()).words


def test_nan_images_are_wrong_and_least_sure(tmp_path):
    model, _, data = everything()
    pixels = data.tensors[0].clone()
    pixels[3] = torch.nan
    loader = DataLoader(TensorDataset(pixels, data.tensors[1]), 7)
    explain(model, loader, [tmp_path / "a.csv", tmp_path / "a.html"])
    row = rows_of(tmp_path / "a.csv")[3]
    assert (row["right"], row["confidence"]) == ("0", "nan")


@pytest.mark.parametrize(
    ("options", "message"),
    one_in(
        3,
        [
            ({"files": "none/images.csv"}, "no folder"),
            ({"files": "images.png"}, "end the name in"),
            ({"names": ["one"]}, "fewer names"),
            ({"categories": Categories((0, 1), ("a", "b"))}, "2 classes"),
            ({"mean": (0.5,)}, "both mean"),
            ({"each": 0}, "1 or more"),
            ({"model": nn.Conv2d(3, 3, 1)}, "give a converted model"),
        ],
    ),
)
def test_bad_calls_write_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    model, _, data = everything()
    given = {"model": model, "files": ["images.csv", "images.html"], **options}
    with pytest.raises(ArgumentError, match=message):
        explain(given.pop("model"), DataLoader(data, 7), given.pop("files"), **given)
    assert list(tmp_path.iterdir()) == []


def reported(share, folder):
    model, _, data = everything()
    names = [f"picture {i}" for i in share(range(COUNT))]
    files = [Path(folder, "images.csv"), Path(folder, "images.html")]
    found = explain(model, DataLoader(share(data), 4), files, names=names, each=2)
    return [found.evaluation.top1, found.flops_ratio]


def on_one_of_two(rank, folder):
    own = Path(folder, f"of {rank}")
    own.mkdir()
    Path(folder, f"{rank}.json").write_text(json.dumps(reported(shard, own)))


@pytest.mark.slow
@needs_gloo
def test_two_processes_write_what_one_does(tmp_path):
    in_two_processes(on_one_of_two, tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = reported(lambda data: data, alone)
    assert json.loads((tmp_path / "0.json").read_text()) == pytest.approx(expected)
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    assert list((tmp_path / "of 1").iterdir()) == []  # the first process writes
    key = lambda row: row["image"]  # noqa: E731
    ours, theirs = (
        sorted(rows_of(folder / "images.csv"), key=key) for folder in (tmp_path / "of 0", alone)
    )
    assert ours == theirs
    pages = [Page((f / "images.html").read_text()) for f in (tmp_path / "of 0", alone)]
    assert pages[0].figures == pages[1].figures
    assert pages[0].sources == pages[1].sources
