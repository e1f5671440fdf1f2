"""The nested split on every block type: one function in every form, at the table's cost."""

import copy
import itertools
import logging

import pytest
import torch
from block_nets import OF_EACH_KIND, TYPES, build, size_of
from helpers import run
from nets import images, off_by
from norms import draw_norms, uniform
from quick import one_in, slow_unless

from dmnn_convert import dynamize, force_gates, record_paths
from dmnn_convert.dryrun import measure
from dmnn_convert.frozen import plain_network
from dmnn_convert.nn import NestedBlock, multi_path_blocks

N = 3
BATCH = 8
APART = {  # what cannot nest -> why
    "effective_se_hidden": "which is computed whole",  # excites by a dense layer, unpooled
    "eca_hidden": "which is computed whole",
    "cbam_hidden": "which is computed whole",
    "mlp_layer_norm": "which is computed whole",
    "swiglu_norm": "which is computed whole",
    "res2net": "which is computed whole",
    "max_of_channels": "which is computed whole",
    "einsum": "which is computed whole",
    "repeat": "which is computed whole",
    "topk": "which is computed whole",
    "sort": "which is computed whole",
    "softmax_2d": "which is computed whole",
    "depthwise_separable": "which is computed whole",
    "depthwise_separable_chain": "which is computed whole",
    "repvgg": "which is computed whole",
    "grouped_reader": "which is computed whole",
    "shuffled_groups_whole": "which is computed whole",
    "grn": "averages over all hidden channels",
    "grn_channels_last": "averages over all hidden channels",
    "vector_norm": "averages over all hidden channels",
    "norm_of_places_from_the_back": "averages over all hidden channels",
    "glu": "joins several runs",
    "glu_mlp": "joins several runs",
    "glu_layer": "joins several runs",
    "glu_function": "joins several runs",
    "ghost": "joins several runs",
    "shuffled_groups": "joins several runs",
    "channel_shuffle": "joins several runs",
    "shuffled_by_permute": "joins several runs",
    "two_producers": "joins several runs",
    "layer_scale_hidden": "meet a tensor of the model",
}


class Lines(logging.Handler):
    """The lines that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record):
        self.text += record.getMessage() + "\n"


@pytest.fixture(scope="module", params=one_in(5, TYPES))
def converted(request):
    """Return source, converted model, table and images; nobody changes them."""
    source, lines = build(request.param), Lines()
    logging.getLogger("dmnn_convert").addHandler(lines)
    model, table = dynamize(source, N, split="nested", input_size=size_of(request.param))
    logging.getLogger("dmnn_convert").removeHandler(lines)
    (block,) = multi_path_blocks(model)
    assert isinstance(block, NestedBlock) == (request.param not in APART)
    assert APART.get(request.param, "") in lines.text
    return source, model, table, images(source, size_of(request.param), BATCH)


def test_every_form_is_one_function(converted):
    source, model, _, x = converted
    (block,) = multi_path_blocks(model)
    with torch.no_grad():
        expected = source(x)
    for execution in ("skip", "masked"):
        assert off_by(run(model, x, True, execution), expected) <= 1e-5
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=N)))
    skipped = run(model, x, patterns)
    assert off_by(run(model, x, patterns, "masked"), skipped) <= 1e-5
    alone = [run(model, x[i : i + 1], patterns[i : i + 1]) for i in range(BATCH)]
    assert off_by(torch.cat(alone), skipped) <= 1e-5
    with torch.no_grad(), force_gates(model, patterns), record_paths(model) as paths:
        model(x)
    if isinstance(block, NestedBlock):
        kept = torch.tensor([[float(block.controller.keep_one), 0, 0]])
        assert paths.gates.equal(torch.maximum(patterns, kept).cumprod(1))


PATHS = ("101", "000", "100", "110", "111")


@pytest.mark.parametrize(
    ("converted", "path"),
    slow_unless(
        lambda name, path: name in OF_EACH_KIND and path == "110",
        itertools.product(TYPES, PATHS),
    ),
    indirect=["converted"],
)
def test_a_frozen_path_is_the_model_under_it_at_the_tables_cost(converted, path):
    _, model, table, x = converted
    model = copy.deepcopy(model)
    (block,) = multi_path_blocks(model)
    gates = torch.tensor([float(gate) for gate in path])
    if not gates.any() and block.controller.keep_one:
        pytest.skip("one of its sub-blocks always runs")
    draw_norms(model, {"running_var": uniform(0.5, 2)})
    frozen = plain_network(model, gates)
    with torch.no_grad():
        assert off_by(frozen(x), run(model, x, gates)) <= 1e-5
    assert not [m for m in frozen.modules() if "dmnn" in type(m).__module__]
    macs = measure(frozen, tuple(x.shape[1:])).macs[""]
    assert macs == int(table.network_flops(gates[None])) - table.controllers


def test_it_trains(converted):
    _, model, table, x = converted
    own = copy.deepcopy(model).train()
    with record_paths(own) as paths:
        own(x).square().mean().backward()
    assert paths.gates.shape == (BATCH, N)
    missing = [n for n, p in own.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if table.nested:
        assert table.params == pytest.approx(table.dense_params, rel=0.01)  # gains are folded
