"""The budget benchmark: its runs, and the tables of its report by hand-made rows."""

import math

import budget_policies
import budget_report
import budget_runs
from torch import nn


def rows(policy, seed, *points):
    fixed = {"network": "resnet20", "policy": policy, "epochs": "30", "seed": seed}
    return [
        {**fixed, "levels": level, "flops_ratio": str(share), "top1": str(top1)}
        for level, share, top1 in points
    ]


ROWS = [
    *rows("static", "0", ("0.25", 0.25, 80.0), ("0.5", 0.5, 84.0), ("0.75", 0.75, 86.0)),
    *rows("dense", "0", ("1", 1.0, 88.0)),
    *rows("level", "0", ("0.25", 0.25, 79.0), ("0.5", 0.5, 84.5), ("0.75", 0.75, 85.75)),
    *rows("level", "0", ("1", 1.0, 87.0)),
    *rows("cascade", "0", ("→", 0.4, 83.0), ("→", 0.6, 86.0), ("→", 0.8, 89.0)),
    *rows("static", "1", ("0.25", 0.25, 81.0), ("0.5", 0.5, 85.0), ("0.75", 0.75, 87.0)),
    *rows("dense", "1", ("1", 1.0, 89.0)),
]


def test_lines_are_compared_at_equal_flops_and_seed_by_seed():
    text = budget_report.tables(ROWS)
    assert "resnet20, 30 epochs, seeds 0, 1" in text
    # Level 0.5 has 84.5; alone it has 84 and 85 under the two seeds.
    assert "| 0.5 | 0.500 | 84.50 | 84.50 | +0.00 |" in text
    # At .6 the static lines have 84.8 and 85.8; the cascade has 86, of seed 0 alone.
    line = next(line for line in text.splitlines() if line.startswith("| 0.6 |"))
    assert line.split(" | ")[1:] == ["85.30", "85.00 (+0.20)", "86.00 (+1.20) |"]
    # 0.85 at .55, and 0.35 more with each 0.05: 1.55 on the mean.
    assert "cascade, mean of .55 to .75: +1.55 points over the static line" in text
    assert "cascade at .60: -2.50 points over the dense network" in text


def test_no_line_is_drawn_through_a_wide_gap():
    without = [row for row in ROWS if row["levels"] != "0.75"]
    text = budget_report.tables(without)
    line = next(line for line in text.splitlines() if line.startswith("| 0.6 |"))
    assert line.split(" | ")[1:] == ["", "", "86.00 |"]
    assert "over the static line" not in text


def test_a_cascade_of_two_takes_networks_of_its_seed():
    run = budget_runs.RUNS["resnet20-cascade-of-two-seed2"]
    assert [one.name for one in run.apart] == [
        *(f"resnet20-static-{level}-seed2" for level in ("0.25", "0.5", "0.75")),
        "resnet20-dense-seed2",
    ]
    assert run.levels.name == "resnet20-levels-seed2"
    assert all(one.name in budget_runs.RUNS for one in (run.levels, *run.apart))


def test_a_cascade_of_two_takes_them_from_two_trainings():
    trainings = ("levels", "levels", "dense")
    parts = [budget_policies._Part("", training, nn.Identity()) for training in trainings]
    pairs = [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert [p for p in pairs if budget_policies._are_apart(parts, p)] == [(0, 2), (1, 2)]


def test_a_picture_is_drawn(tmp_path):
    budget_report.plot(ROWS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_no_line_is_drawn_through_a_gap():
    x, _ = budget_report._with_gaps([0.25, 0.5, 1.0], [87.0, 89.0, 90.0])
    assert x[:2] == [0.25, 0.5] and x[3] == 1.0 and math.isnan(x[2])
