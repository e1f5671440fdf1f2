"""The committed result of the sweep over the zoos is complete and agrees with the documents."""

import shutil
from pathlib import Path

import pytest
import timm
import zoo
import zoo_coverage
from zoo_libraries import LIBRARIES, human_count

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "coverage.csv"

pytestmark = pytest.mark.skipif(
    not TABLE.exists(), reason="docs/coverage.csv is not here; benchmarks/zoo/zoo.py writes it"
)


@pytest.fixture(scope="module")
def rows():
    return zoo_coverage.read(TABLE)


def test_the_columns_are_those_that_were_agreed_on():
    head = TABLE.read_text(encoding="utf-8").splitlines()[0]
    assert head == (
        "library,model,status,reason,blocks,split_blocks,parameter_ratio,gated_share,"
        "deviation,seconds,training"
    )


def test_rows_are_sorted_and_single(rows):
    names = [(row.library, row.model) for row in rows]
    assert names == sorted(set(names))
    assert {"timm", "torchvision"} <= {row.library for row in rows}


def test_no_model_failed(rows):
    assert [(row.model, row.reason) for row in rows if row.status == "failed"] == []


def test_exact_models_are_exact(rows):
    exact = [row for row in rows if row.status == "exact"]
    assert exact
    for row in exact:
        if row.deviation > zoo_coverage.TOLERANCE:
            assert _float64(row.reason) <= zoo_coverage.TOLERANCE_64, row


def _float64(reason):
    _, marked, after = reason.partition("float64 ")
    assert marked, reason
    return float(after)


def test_converted_models_keep_their_parameters_and_have_figures(rows):
    for row in rows:
        if row.status in ("exact", "approximate"):
            assert abs(row.parameter_ratio - 1) <= 0.02, row  # the copies of last norms too
            assert 0 < row.split_blocks <= row.blocks, row
            assert 0 < row.gated_share <= 1, row


def test_every_converted_model_takes_a_training_step(rows):
    assert [row for row in rows if row.status == "exact" and row.training != "step"] == []


def test_refused_models_have_a_reason(rows):
    assert all(row.reason for row in rows if row.status in ("refused", "approximate"))


def test_the_summary_is_generated_from_the_table(rows, tmp_path):
    if any(row.library == "timm" and not timm.is_model(row.model) for row in rows):
        pytest.skip(f"timm {timm.__version__} lacks models of the table, whose families it tells")
    shutil.copy(TABLE, tmp_path)
    assert zoo.main(["--summary", "--output-dir", str(tmp_path)]) == 0
    generated = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8") == generated


COUNTED = {
    "transformers": 0.75,
    "pytorchcv": 0.85,
    "segmentation_models_pytorch": 0.85,
    "monai": 0.85,
    "open_clip": 0.8,
    "ultralytics": 0.85,
    "efficientnet_lite_pytorch": 0.85,
    "mmpretrain": 0.85,
}
"""Whose models come with a human's count of their blocks -> the least share to be converted."""


@pytest.mark.parametrize("library", COUNTED)
def test_of_the_blocks_that_a_human_counts_enough_are_converted(rows, library):
    own = [row for row in rows if row.library == library]
    got = total = 0
    for row in own:
        count = human_count(row)
        if count is not None:
            got += min(row.split_blocks or 0, count)
            total += count
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    (line,) = (
        text for text in page.splitlines() if text.startswith(f"| {library} | ") and "%" in text
    )
    assert f"| {got:,} of {total:,} | {100 * got / total:.1f} % |" in line
    assert got >= COUNTED[library] * total > 0


@pytest.mark.parametrize(
    "library",
    [
        *("transformers", "pytorchcv", "segmentation_models_pytorch", "open_clip"),
        *("ultralytics", "mmpretrain"),
    ],
)
def test_every_model_of_these_libraries_is_counted(rows, library):
    names = LIBRARIES[library].names()
    assert all(LIBRARIES[library].human(name) is not None for name in names)
    assert {row.model for row in rows if row.library == library} <= set(names)


def test_sixty_networks_of_transformers_convert(rows):
    own = [row for row in rows if row.library == "transformers"]
    assert len(own) >= 68
    assert sum(row.status == "exact" for row in own) >= 60


def test_blocks_beyond_a_humans_count_do_not_count():
    rows = [
        zoo_coverage.Row("own", "more", "exact", split_blocks=5),
        zoo_coverage.Row("own", "less", "exact", split_blocks=2),
        zoo_coverage.Row("own", "none", "refused"),
        zoo_coverage.Row("own", "uncounted", "exact", split_blocks=9),
    ]
    counts = {"more": 3, "less": 4, "none": 1}
    found = zoo_coverage.counted(rows, lambda row: counts.get(row.model))
    assert found == {"more": (3, 3), "less": (2, 4), "none": (0, 1)}
    page = zoo_coverage.summary(rows, lambda row: "", lambda row: counts.get(row.model))
    assert "| own | 2 of 3 | 5 of 8 | 62.5 % | `less` 2 of 4, `none` 0 of 1 |" in page


def test_the_guide_quotes_the_totals(rows):
    guide = " ".join((ROOT / "docs" / "conversion.md").read_text(encoding="utf-8").split())
    assert zoo.totals(rows) in guide
    assert "benchmarks/zoo/zoo.py" in guide
