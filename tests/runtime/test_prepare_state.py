"""State that a forward keeps from call to call: only passes that the user asked for change it."""

import copy

import pytest
import torch
from quick import slow_unless
from small_nets import IMAGE, Net, basic

from dmnn_convert import (
    ConversionError,
    deploy,
    dynamize,
    find_blocks,
    force_gates,
    freeze,
    prepare,
)

SEEN = []


class Keeps(Net):
    """Its outer forward keeps the number of its calls, and multiplies by it."""

    shared, tally = torch.ones(1), {"n": 0}

    def __init__(self, how):
        super().__init__(basic(8, 8), basic(8, 16))
        self.how, self.calls, self.held, self.inner = how, 0, [], [torch.ones(1)]
        self.register_buffer("count", torch.ones(1))
        self.plain, self.scale = torch.ones(1), torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x) * self.how(self)


def an_attribute(self):
    self.calls += 1
    return self.calls


def a_buffer(self):
    self.count += 1
    return self.count


def another_buffer(self):
    self.count = self.count + 1
    return self.count


def a_list(self):
    self.held.append(1)
    return len(self.held)


def a_tensor(self):
    self.plain += 1
    return self.plain


def a_tensor_in_a_list(self):
    self.inner[0] += 1
    return self.inner[0]


def a_parameter(self):
    self.scale.data += 1
    return self.scale


def a_parameters_memory(self):
    self.scale.data = self.scale.data + 1
    return self.scale


def a_tensor_of_the_class(self):
    self.shared.add_(1)
    return self.shared


def a_dict_of_the_class(self):
    self.tally["n"] += 1
    return self.tally["n"]


def a_global(self):
    SEEN.append(1)
    return len(SEEN)


KEEP = (
    *(an_attribute, a_buffer, another_buffer, a_list, a_tensor, a_tensor_in_a_list, a_parameter),
    *(a_parameters_memory, a_tensor_of_the_class, a_dict_of_the_class, a_global),
)
QUICK = ("an_attribute", "a_parameter")


@pytest.fixture(autouse=True)
def as_at_first():
    SEEN.clear()
    Keeps.shared.fill_(1)
    Keeps.tally["n"] = 0


def kept(net):
    """Return all that a network keeps, in words."""
    own = (net.calls, net.held, net.inner, net.count, net.plain, net.scale.detach())
    return repr((own, SEEN, Keeps.shared, Keeps.tally))


def outputs(model, images):
    """Return the outputs of three calls of a copy, as if there had been none."""
    model, shared, tally, seen = (
        copy.deepcopy(model),
        Keeps.shared.clone(),
        Keeps.tally["n"],
        [*SEEN],
    )
    try:
        with torch.no_grad():
            return [model(images) for _ in range(3)]
    finally:
        Keeps.shared.copy_(shared)
        Keeps.tally["n"], SEEN[:] = tally, seen


@pytest.mark.parametrize("how", slow_unless(lambda how: how.__name__ in QUICK, KEEP))
def test_no_pass_of_ours_counts(how):
    source, images = Keeps(how).eval(), torch.randn(2, *IMAGE)
    at_first = kept(source)
    expected = outputs(source, images)
    find_blocks(source, IMAGE)
    model = dynamize(source, 2, split="exact", input_size=IMAGE).model.eval()
    plain = freeze(model, 1.0)
    assert kept(source) == kept(model) == kept(plain) == at_first
    with force_gates(model, True):
        forms = [
            prepare(model, images[:1], autotune=False),
            prepare(plain, images[:1], autotune=False),
        ]
    assert kept(source) == kept(model) == kept(plain) == at_first
    for form in (source, model, plain, *forms):
        with force_gates(form, True) if form in (model, forms[0]) else torch.no_grad():
            for got, wanted in zip(outputs(form, images), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", [an_attribute, a_global], ids=lambda how: how.__name__)
def test_what_no_engine_keeps_is_not_deployed(how, tmp_path):
    source, images = Keeps(how).eval(), torch.randn(2, *IMAGE)
    at_first = kept(source)
    with pytest.raises(ConversionError, match="does not answer as the model does"):
        deploy(source, tmp_path, images)
    assert kept(source) == at_first
