"""The committed result of the sweep over the zoos is complete and agrees with the documents."""

import shutil
from pathlib import Path

import pytest
import timm
import zoo
import zoo_coverage

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


def test_refused_models_have_a_reason(rows):
    assert all(row.reason for row in rows if row.status in ("refused", "approximate"))


def test_the_summary_is_generated_from_the_table(rows, tmp_path):
    if any(row.library == "timm" and not timm.is_model(row.model) for row in rows):
        pytest.skip(f"timm {timm.__version__} lacks models of the table, whose families it tells")
    shutil.copy(TABLE, tmp_path)
    assert zoo.main(["--summary", "--output-dir", str(tmp_path)]) == 0
    generated = (tmp_path / "coverage.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8") == generated


def test_the_guide_quotes_the_totals(rows):
    guide = " ".join((ROOT / "docs" / "conversion.md").read_text(encoding="utf-8").split())
    assert zoo.totals(rows) in guide
    assert "benchmarks/zoo/zoo.py" in guide
