"""The table of operations: one row each, and every word in it is carried out somewhere."""

import collections

import pytest
import torch
from nets import Written

from dmnn_convert.channels.carry import _WAYS
from dmnn_convert.channels.node_rules import rule
from dmnn_convert.graph import CARRYING, Images, known, trace
from dmnn_convert.graph.images_apart import _CHECKS
from dmnn_convert.graph.operations import _ROWS


def test_no_operation_has_two_rows():
    names = collections.Counter(name for names, _ in _ROWS for name in names)
    assert [name for name, times in names.items() if times > 1] == []


def test_every_word_of_a_row_is_carried_out():
    assert set(_WAYS) == CARRYING
    assert set(_CHECKS) == set(Images)


def test_what_treats_every_value_alike_is_known_in_place_too():
    assert known("clamp_") is known("clamp")
    assert not known("unsqueeze_").per_image


BETWEEN_IMAGES = {
    "glu": lambda x: torch.nn.functional.glu(x, 0),
    "max": lambda x: x.max(0)[0],
    "max_of_all": lambda x: x.max(),
    "maximum_of_two": lambda x: torch.max(x, x)[0],
    "sorted": lambda x: x.sort(0)[0],
    "largest": lambda x: torch.topk(x, 2, 0).values,
    "einsum": lambda x: torch.einsum("bchw,dchw->bd", x, x),
    "einsum_without_images": lambda x: torch.einsum("bchw->chw", x),
    "repeat": lambda x: torch.relu(x).repeat(2, 1, 1, 1),
    "repeat_of_a_value_of_unknown_rank": lambda x: x.repeat(1, 1, 2, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "repeat_interleave_of_all": lambda x: x.repeat_interleave(2),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, 2, (0, 1)),
    "vector_norm_of_all": lambda x: torch.linalg.vector_norm(x),
    "attribute": lambda x: x.T,
}


@pytest.mark.parametrize("name", BETWEEN_IMAGES)
def test_what_may_mix_images_is_known_to_be_of_no_use(name):
    traced = trace(Written(lambda m, x: BETWEEN_IMAGES[name](x)))
    assert not all(rule(traced, n).per_image for n in traced.graph.nodes if "call" in n.op)


WITHIN_IMAGES = {
    "glu": lambda x: torch.nn.functional.glu(x, dim=1),
    "max": lambda x: x.max(1)[0],
    "sorted": lambda x: x.sort(1)[0],
    "largest": lambda x: torch.topk(x, 2, 1).values,
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "repeat": lambda x: x.mean((2, 3), keepdim=True).permute(0, 1, 2, 3).repeat(1, 1, 2, 2),
    "max_by_name": lambda x: torch.max(x, dim=2).values,
    "vector_norm": lambda x: torch.linalg.vector_norm(x, 2, (2, 3)),
}


@pytest.mark.parametrize("name", WITHIN_IMAGES)
def test_what_treats_every_image_by_itself_is_known_to(name):
    traced = trace(Written(lambda m, x: WITHIN_IMAGES[name](x)))
    assert all(rule(traced, n).per_image for n in traced.graph.nodes if "call" in n.op)
