"""The search for a path by stage."""

import copy

import pytest
import torch
from small_nets import IMAGE, basic_net

from dmnn_convert import ArgumentError, dynamize, level_path, search_ladder, search_levels
from dmnn_convert.budget.level import path_ratio
from dmnn_convert.budget.search import own_statistics
from dmnn_convert.nn import multi_path_blocks


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return dynamize(basic_net(), 4, split="exact", tail_norm="shared", input_size=IMAGE)


def held_out(model, count=2):
    """Return images with the answers of all sub-blocks."""
    images = torch.randn(count, 16, *IMAGE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), own_statistics(model.eval()):
        return [(x, model(x).argmax(1)) for x in images]


def test_a_loss_that_is_not_finite_is_told():
    model = dynamize(basic_net(), 2, input_size=IMAGE).model
    odd = torch.full((4, *IMAGE), float("nan"))
    with pytest.raises(ArgumentError, match="not finite"):
        search_levels(model, [(odd, torch.zeros(4, dtype=torch.long))], 0.9)


def test_a_path_by_stage_is_within_the_budget(found):
    model, table = found
    loader, before = held_out(model), copy.deepcopy(model.state_dict())
    lowest = path_ratio(table, level_path(model, 1 / 4))
    for budget in (1.0, (1 + lowest) / 2, lowest + 1e-6):
        path = search_levels(model, loader, budget)
        assert path_ratio(table, path) <= budget
        for stage in set(table.stages):
            blocks = zip(table.stages, path.split(table.sizes), strict=True)
            counts = {int(part.sum()) for own, part in blocks if own == stage}
            assert len(counts) == 1
            assert counts.pop() >= 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m.training for m in model.modules())


def test_the_stage_that_costs_least_for_its_flops_gives_up_first(found):
    model, table = copy.deepcopy(found.model), found.table
    stages = sorted(set(table.stages))
    assert len(stages) > 1
    model.fc.weight.data.mul_(50)  # the answers are sure, so that any change is for the worse
    # All but the first sub-blocks of the last stage add nothing at all.
    for block, stage in zip(multi_path_blocks(model), table.stages, strict=True):
        if stage == stages[-1]:
            for sub_block in list(block.sub_blocks)[1:]:
                for p in sub_block.parameters():
                    p.data.zero_()
    path = search_levels(model, held_out(model), path_ratio(table, level_path(model, 1.0)) - 1e-6)
    expected = tuple(0.75 if stage == stages[-1] else 1.0 for stage in stages)
    assert torch.equal(path, level_path(model, expected))


def test_what_cannot_be_searched_is_refused(found):
    model, table = found
    loader = held_out(model)
    for budget in (0, 1.2, True, "half"):
        with pytest.raises(ArgumentError, match="above 0 and at most 1"):
            search_levels(model, loader, budget)
    lowest = path_ratio(table, level_path(model, 1 / 4))
    with pytest.raises(ArgumentError, match=f"take {lowest:.3f} of the source"):
        search_levels(model, loader, lowest / 2)
    with pytest.raises(ArgumentError, match="give images"):
        search_levels(model, [x for x, _ in loader], 0.8)
    with pytest.raises(ArgumentError, match="no batch"):
        search_levels(model, [], 0.8)


def test_a_ladder_is_what_the_search_goes_down(found):
    model, table = found
    loader = held_out(model)
    ladder = search_ladder(model, loader, step=0.0)
    costs = [path_ratio(table, path) for path in ladder]
    assert costs == sorted(costs)
    assert torch.equal(ladder[0], level_path(model, 1 / 4))
    assert len(ladder) == 3 * len(set(table.stages))  # N = 4: each stage gives up three
    for path, cost in zip(ladder, costs, strict=True):
        assert torch.equal(search_levels(model, loader, cost + 1e-9), path)
    few = [path_ratio(table, path) for path in search_ladder(model, loader, step=0.1)]
    assert all(b - a >= 0.1 for a, b in zip(few, [*few[1:], 1.0], strict=True))
