"""An evaluation as text, JSON and picture."""

import json
import sys

import pytest
import torch
from small_nets import IMAGE, basic_net, images

from dmnn_convert import ArgumentError, DenseEvaluation, Evaluation, dynamize, evaluate, force_gates
from dmnn_convert.evaluation import Spread
from dmnn_convert.report import EvaluationReport, plot_evaluation


def by_hand(**changes):
    """Eight classes with one image each; four sub-blocks in two blocks."""
    spread = Spread(*(0.5, 0.1), *(0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9))
    macs = Spread(*(4.1e9, 2.5e6), *(1e3, 2e3, 4e9, 4.1e9, 4.2e9, 5e9, 6e9))
    histogram = [0] * 100
    histogram[40], histogram[42] = 1, 7
    values = {
        **{"images": 8, "top1": 62.5, "top5": 87.5, "loss": 0.75, "nan_images": 0},
        "classes": tuple("abcdefgh"),
        "class_images": (1,) * 8,
        "class_top1": (100.0,) * 5 + (0.0,) * 3,
        "images_per_second": 1234.5,
        **{"macs": macs, "gated_macs": macs},
        **{"network_flops_ratio": spread, "flops_ratio": spread},
        "flops_histogram": tuple(histogram),
        "class_flops_ratio": tuple(0.9 - i / 10 for i in range(8)),
        **{"blocks": ("b1", "b2"), "sizes": (2, 2), "sub_block_rates": (0.25, 0.5, 1.0, 0.0)},
        **{"distinct_paths": 5, "path_entropy": 2.0, "class_entropy": 3.0},
        **{"mutual_information": 1.5, "chance_information": 1.25},
        **{"frequent_path": (0, 0, 1, 0), "frequent_path_share": 0.5},
    }
    return Evaluation(**{**values, **changes})


TEXT = """\
net: 8 images of 8 classes

              top-1    top-5    loss  FLOPs of source  images/s
dynamic     62.50 %  87.50 %  0.7500           0.5000     1,234

FLOPs of an image           mean ± spread    1 %    5 %   25 %   50 %   75 %   95 %   99 %
  gated, of all gates on    0.500 ± 0.100  0.100  0.200  0.400  0.500  0.600  0.800  0.900
  network, of source        0.500 ± 0.100  0.100  0.200  0.400  0.500  0.600  0.800  0.900
  network, MACs           4.1 G ± 2.5 M    1 k    2 k    4 G  4.1 G  4.2 G    5 G    6 G

Images by gated FLOPs  0.40 ▂ █ 0.43

Paths: 5 distinct, entropy 2.00 bits; 50 % of the images take the most frequent one
  path and class share 1.50 of 3.00 bits; shuffled labels would share 1.25

block   rate    sub-blocks
b1     0.375  0.250  0.500
b2     0.500  1.000  0.000
always on (1 of 4): b2#0
never on (1 of 4): b2#1

class, cheapest first  images  gated FLOPs     top-1
h                           1        0.200    0.00 %
g                           1        0.300    0.00 %
f                           1        0.400    0.00 %
…
c                           1        0.700  100.00 %
b                           1        0.800  100.00 %
a                           1        0.900  100.00 %"""


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_text():
    assert squeezed(EvaluationReport("net", by_hand()).as_text()) == squeezed(TEXT)


def test_the_text_beside_others():
    source = DenseEvaluation(8, 75.0, None, None, 1, ("a",), (8,), (75.0,), 10.0)
    frozen = by_hand(top1=12.5, nan_images=2)
    text = EvaluationReport("net", by_hand(), source, frozen).as_text(verbose=True)
    lines = squeezed(text)
    assert "source 75.00 % - - 1 10" in lines
    assert "frozen path 12.50 % 87.50 % 0.7500 0.5000 1,234" in lines
    assert "source: 1 image with NaN or infinite logits, counted as wrong" in lines
    assert "frozen path: 2 images with NaN or infinite logits, counted as wrong" in lines
    assert "e 1 0.500 100.00 %" in lines
    assert "…" not in lines


def test_the_text_of_a_real_one():
    model, table = dynamize(basic_net(), input_size=IMAGE)
    with force_gates(model, 0.5):
        found = evaluate(model, table, [(images(30), torch.arange(30) % 5)])
    text = EvaluationReport("net", found).as_text()
    assert text.startswith("net: 30 images of 5 classes")
    assert max(map(len, text.splitlines())) <= 110


def test_the_json_of_the_report():
    values = json.loads(EvaluationReport("net", by_hand(), frozen=by_hand(top1=1.0)).as_json())
    assert (values["name"], values["source"]) == ("net", None)
    assert Evaluation.from_dict(values["evaluation"]) == by_hand()
    assert Evaluation.from_dict(values["frozen"]).top1 == 1.0


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.svg"):
        plot_evaluation(by_hand(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.svg"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match=r"nowhere\.txt.*\.png"):
        plot_evaluation(by_hand(), "nowhere.txt")


def test_without_matplotlib_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match=r"pip install 'dmnn-convert\[report\]'"):
        plot_evaluation(by_hand(), "a.png")
