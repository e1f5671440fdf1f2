"""Models that torch.fx cannot follow as a whole are converted in parts and otherwise unchanged."""

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import timm
import torch
from nets import Inline, Residual, SumBlock, conv_norm, images, off_by, randomised
from quick import slow_unless
from torch import Tensor, nn
from torchvision.models import detection, segmentation

import dmnn_convert.dryrun.calls
from dmnn_convert import (
    ArgumentError,
    NoBlocksFoundError,
    block_errors,
    dynamize,
    find_blocks,
    force_gates,
    load,
    record_paths,
    resource_loss,
    save,
)
from dmnn_convert.graph import trace
from dmnn_convert.nn import controllers

SMALL, TINY = (3, 96, 96), (3, 16, 16)


# --- models -----------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class Backbone(nn.Module):
    """Its forward branches on values; its stages are in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.stages = nn.ModuleList(nn.Sequential(SumBlock("plus"), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x) if x.isfinite().all() else x
        return x


class Classifier(nn.Module):
    """What a forward of the transformers library looks like."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(8, 5)

    def forward(self, pixel_values=None, labels=None, return_dict=True):
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        logits = self.head(self.backbone(pixel_values).mean((2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return Output(logits, loss) if return_dict else (logits, loss)


def apart(model):
    """Let scores differ by more than rounding, which would break ties between detections."""
    with torch.no_grad():
        for layers in model.head.classification_head.module_list:
            layers[-1].weight.mul_(30)
    return model


def detector(make, **options):
    """Build a detector that finds something, however its random weights fall."""
    model = make(weights=None, weights_backbone=None, **options)
    if hasattr(model, "roi_heads"):
        with torch.no_grad():
            for parameter in model.roi_heads.parameters():
                parameter.mul_(0.1)
    return model


def timm_features(name, kind):
    return timm.create_model(name, features_only=True, feature_cfg={"feature_cls": kind})


class Case(NamedTuple):
    build: object
    blocks: int
    size: tuple[int, ...] = SMALL
    head: str = ""
    """A module whose outputs are compared, before what comes after breaks ties."""


PIXELS = {"min_size": 96, "max_size": 96}
ROI = {"box_score_thresh": 0.0, "box_batch_size_per_image": 16, **PIXELS}
SINGLE = {"score_thresh": 0.0, **PIXELS}
CASES = {
    "fasterrcnn_v2": Case(
        lambda: detector(detection.fasterrcnn_resnet50_fpn_v2, **ROI), 16, head="backbone"
    ),
    "retinanet": Case(
        lambda: detector(detection.retinanet_resnet50_fpn, **SINGLE), 16, head="head"
    ),
    "keypointrcnn": Case(
        lambda: detector(detection.keypointrcnn_resnet50_fpn, **ROI), 16, head="backbone"
    ),
    "ssdlite": Case(
        lambda: apart(detector(detection.ssdlite320_mobilenet_v3_large, score_thresh=0.0)),
        31,
        head="head",
    ),
    "deeplabv3": Case(
        lambda: segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True),
        16,
    ),
    "lraspp": Case(
        lambda: segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), 15
    ),
    "features_list": Case(lambda: timm_features("resnet18", "list"), 8),
    "features_dict": Case(lambda: timm_features("resnet18", "dict"), 8),
    "features_hook": Case(lambda: timm_features("mobilenetv2_100", "hook"), 17),
    "classifier": Case(Classifier, 2, TINY),
    "backbone": Case(Backbone, 2, TINY),
}
DETECTORS = ("fasterrcnn_v2", "ssdlite", "retinanet", "keypointrcnn")
LIGHT = ["ssdlite", "lraspp", "features_list", "features_hook", "classifier", "backbone"]
QUICK = ["features_list", "classifier", "backbone"]


def build(name):
    torch.manual_seed(0)
    # In float64, so that rounding does not change the order of detections.
    return randomised(CASES[name].build()).double().eval()


def convert(name):
    source = build(name)
    return source, *dynamize(source, split="exact", input_size=CASES[name].size)


@pytest.fixture(scope="module")
def name(request):
    """A case; its tests follow each other, so that one conversion at a time is kept."""
    return request.param


@pytest.fixture(scope="module")
def conversion(name):
    """Return source, converted model and table; nobody changes them."""
    return convert(name)


def batch_for(name, size=2):
    return images(nn.Linear(1, 1).double(), CASES[name].size, batch=size).sigmoid()


def tensors(output):
    """Yield every tensor of an output of any form, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Output):
        yield output.logits
    elif isinstance(output, dict | list | tuple):
        for part in output.values() if isinstance(output, dict) else output:
            yield from tensors(part)


def seen(name, model, x):
    """Run a model; return its output and that of the module whose output is compared."""
    kept = []
    watched = model.get_submodule(CASES[name].head)
    hook = watched.register_forward_hook(lambda _m, _i, output: kept.extend(tensors(output)))
    with torch.no_grad():
        output = model(x)
    hook.remove()
    return output, kept


# --- the zoos ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, CASES), indirect=True)
def test_outputs_are_equal_with_all_gates_on(name, conversion):
    source, model, table = conversion
    assert len(table.blocks) == CASES[name].blocks
    assert type(model).__name__ == type(source).__name__
    assert isinstance(model, type(source))
    x = batch_for(name)
    (expected, inner), versions = seen(name, source, x), []
    with force_gates(model, True), record_paths(model) as paths:
        got, converted_inner = seen(name, model, x)
    assert paths.gates.shape == (2, len(table.rows))
    assert type(got) is type(expected)
    assert sum(t.numel() for t in inner)
    versions = list(zip(converted_inner, inner, strict=True))
    if name != "ssdlite":  # the boxes of equal scores come in an order that rounding decides
        versions += zip(tensors(got), tensors(expected), strict=True)
    assert max(off_by(a, b) for a, b in versions if b.numel()) <= 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS, indirect=True)
def test_detections_are_the_same(name, conversion):
    source, model, _ = conversion
    x = batch_for(name)
    with torch.no_grad(), force_gates(model, True):
        for got, expected in zip(model(list(x)), source(list(x)), strict=True):
            assert list(got) == list(expected)
            assert len(expected["scores"])
            assert off_by(got["scores"], expected["scores"]) <= 1e-10


def loss_of(name, model, x):
    if name in DETECTORS:
        target = {"boxes": torch.tensor([[8.0, 8, 60, 70]]), "labels": torch.tensor([1])}
        if name == "keypointrcnn":
            target["keypoints"] = torch.tensor([20.0, 30, 1]).repeat(1, 17, 1)
        return sum(model(list(x), [dict(target) for _ in x]).values())
    if name == "classifier":
        return model(x, labels=torch.zeros(len(x), dtype=torch.long)).loss
    return sum(t.square().mean() for t in tensors(model(x)))


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, CASES), indirect=True)
def test_a_training_step_reaches_the_controllers(name, conversion):
    _, model, table = conversion
    model = copy.deepcopy(model).float().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [c.w3.bias.detach().clone() for c in controllers(model)]
    with record_paths(model) as paths:
        loss = loss_of(name, model, batch_for(name).float())
    assert paths.gates.shape == (2, len(table.rows))
    (loss + resource_loss(paths, table, 0.1)).backward()
    optimizer.step()
    for controller, bias in zip(controllers(model), before, strict=True):
        assert all(p.grad is not None for p in controller.parameters())
        assert not torch.equal(controller.w3.bias, bias)


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, LIGHT), indirect=True)
def test_save_and_load_round_trip(name, conversion, tmp_path):
    _, model, table = conversion
    save(model, tmp_path)
    torch.manual_seed(5)
    loaded, loaded_table = load(tmp_path, CASES[name].build())
    x = batch_for(name)
    with torch.no_grad():
        pairs = zip(tensors(loaded(x)), tensors(model(x)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert loaded_table == table


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, LIGHT), indirect=True)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(name, conversion, way):
    _, model, _ = conversion
    copied, x = way(model), batch_for(name)
    with torch.no_grad(), record_paths(copied) as paths:
        pairs = list(zip(tensors(copied(x)), tensors(model(x)), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len(paths.gates) == len(x)
    assert list(copied.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", slow_unless(QUICK.__contains__, LIGHT), indirect=True)
def test_the_dry_run_tells_the_same_as_the_conversion(name, conversion):
    source, _, table = conversion
    blocks = find_blocks(source, CASES[name].size)
    assert tuple(b.name for b in blocks if b.reason is None) == table.blocks


@pytest.mark.slow
def test_the_table_counts_the_whole_detector():
    _, model, table = convert("ssdlite")
    inside = {row.block for row in table.rows}
    assert any(name.startswith("head.classification_head") for name in inside)
    assert 0 < table.gated < table.total
    assert table.dense_total == table.total - table.controllers  # an exact hidden-channel split
    with record_paths(model) as paths, torch.no_grad():
        model(batch_for("ssdlite"))
    assert 0 < float(paths.network_flops_ratio()) <= 1.01


def test_every_form_of_call_of_a_branching_model():
    source, model, _ = convert("classifier")
    x, labels = batch_for("classifier"), torch.tensor([1, 2])
    with force_gates(model, True), torch.no_grad():
        got, expected = model(x, labels=labels), source(x, labels=labels)
        assert off_by(got.logits, expected.logits) <= 1e-10
        assert off_by(got.loss, expected.loss) <= 1e-10
        assert isinstance(model(pixel_values=x, return_dict=False), tuple)
        with pytest.raises(ValueError, match="specify pixel_values"):
            model()


def test_the_error_of_a_dataclass_is_measured():
    source, model, _ = convert("classifier")
    x = batch_for("classifier")
    assert 0 < block_errors(source, model, x)[""] <= 1e-10
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.head.weight.zero_()
    assert block_errors(source, broken, x)[""] > 0.1


@pytest.mark.parametrize(
    "name", slow_unless("gemma4_vit_167m".__eq__, ["gemma4_vit_167m", "gemma4_vit_167m_enc"])
)
def test_the_layers_of_a_gemma_encoder_are_looked_at(name):
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = timm.create_model(name, depth=2)
    traced = trace(model)
    assert [part.rpartition("blocks.")[2] for part in traced.parts] == ["0", "1"]
    layers = {str(n.target) for n in traced.graph.nodes if n.op == "call_module"}
    assert any("blocks.1.mlp." in layer for layer in layers)


# --- how parts are called ---------------------------------------------------------------------


class Wild(nn.Module):
    """A forward that cannot be traced, around parts that can."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8)
        self.own_forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        x = self.stem(x)
        if x.isnan().any():
            raise ValueError("not a number")
        return self.own_forward(self, x)


class Flagged(SumBlock):
    def __init__(self) -> None:
        super().__init__("plus")

    def forward(self, x, twice=False):
        out = super().forward(x)
        return out * 2 if twice else out


class Augmented(SumBlock):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__("plus")

    def forward(self, x):
        return x.add_(self.second(self.first(x).relu()))


def block():
    return SumBlock("plus")


def pyramid(m, x):
    x = m.a(x)
    return [m.b(level) for level in (x, x[..., ::2, ::2])]


REFUSED = {
    "on every level": (pyramid, block, "called 2 times"),
    "not at all": (lambda m, x: m.a(x), block, "b is not called in a"),
    "on proposals": (lambda m, x: m.b(m.a(x).repeat(3, 1, 1, 1)), block, "reads 6 rows"),
    "with another flag": (lambda m, x: m.b(m.a(x), twice=True), Flagged, "another twice"),
    "writing to its input": (
        lambda m, x: m.b(m.a(x).clone()),
        Augmented,
        "writes in place what the caller may read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_cannot_have_gates_stay_dense(name):
    forward, make, reason = REFUSED[name]
    source = randomised(Wild(forward, a=block(), b=make())).eval()
    converted, refused = find_blocks(source, TINY)
    assert (converted.name, converted.reason) == ("a", None)
    assert refused.name == "b"
    assert reason in refused.reason
    model, table = dynamize(source, input_size=TINY)
    assert table.blocks == ("a",)
    x = images(source, TINY)
    with torch.no_grad(), force_gates(model, True):
        pairs = list(zip(tensors(model(x)), tensors(source(x)), strict=True))
    assert all(off_by(a, b) <= 1e-4 for a, b in pairs)


def test_a_flag_that_is_its_default_does_no_harm():
    source = randomised(Wild(lambda m, x: m.b(x, twice=False), b=Flagged())).eval()
    assert dynamize(source, input_size=TINY).table.blocks == ("b",)


def test_the_chain_follows_the_execution_not_the_registration():
    forward = lambda m, x: m.first(m.second(m.third(x)))  # noqa: E731
    source = Wild(forward, first=block(), second=block(), third=block())
    model, table = dynamize(source, input_size=TINY)
    assert table.blocks == ("third", "second", "first")
    assert [m.controller.position for m in (model.third.multi_path, model.first.multi_path)] == [
        *(0, 2)
    ]
    model(images(model, TINY)).sum().backward()
    with record_paths(model) as paths:
        model(images(model, TINY))
    assert paths.gates.shape == (4, 6)


def test_lists_and_dicts_of_modules_are_descended_into():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv_norm(3, 8)
            self.each = nn.ModuleList([nn.ModuleList([block()]), nn.ModuleDict({"in": block()})])

        def forward(self, x):
            x = self.stem(x)
            return self.each[1]["in"](self.each[0][0](x)) if x.isfinite().all() else x

    assert dynamize(Listed(), input_size=TINY).table.blocks == ("each.0.0", "each.1.in")


def test_a_part_inside_a_traceable_model_keeps_its_place_in_the_chain():
    wild = Wild(lambda m, x: m.b(x), b=block())
    wild.stem = conv_norm(8, 8)
    source = randomised(nn.Sequential(conv_norm(3, 8), block(), wild, block())).eval()
    assert [b.name for b in find_blocks(source)] == ["1", "2.b", "3"]
    model, table = dynamize(source, input_size=TINY)
    assert table.blocks == ("1", "2.b", "3")
    x = images(source, TINY)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


def test_a_part_inside_another_blocks_branch_is_converted_alone():
    wild = Wild(lambda m, x: m.b(x), b=block())
    wild.stem = conv_norm(8, 8)
    body = nn.Sequential(*conv_norm(8, 8), nn.ReLU(), wild, *conv_norm(8, 8))
    source = randomised(nn.Sequential(conv_norm(3, 8), Residual(body))).eval()
    model, table = dynamize(source, input_size=TINY)
    assert table.blocks == ("1.body.3.b",)
    x = images(source, TINY)
    with torch.no_grad(), force_gates(model, True), record_paths(model) as paths:
        assert off_by(model(x), source(x)) <= 1e-4
    assert paths.gates.shape == (4, 2)


def test_hooks_and_ties_count_across_parts():
    source = Wild(lambda m, x: m.c(m.b(m.a(x))), a=block(), b=block(), c=block())
    source.a.first.register_forward_hook(lambda *_: None)
    source.b.first[0].weight = source.c.first[0].weight
    reasons = {b.name: b.reason for b in find_blocks(source)}
    assert "a.first carries a hook" in reasons["a"]
    assert "b.first.0.weight, c.first.0.weight" in reasons["b"]
    assert "b.first.0.weight, c.first.0.weight" in reasons["c"]


@pytest.mark.slow
def test_the_hooks_of_a_feature_extractor_still_see_its_features():
    source, model, _ = convert("features_hook")
    hooked = [n for n, m in source.named_modules() if m._forward_hooks]
    assert hooked
    assert [n for n, m in model.named_modules() if m._forward_hooks] == hooked


def test_an_untraceable_source_is_left_alone():
    source = Classifier()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    modes = [m.train(i % 2 == 0).training for i, m in enumerate(source.modules())]
    state = torch.get_rng_state()
    find_blocks(source, TINY)
    assert torch.equal(torch.get_rng_state(), state)
    dynamize(source, input_size=TINY)
    assert [m.training for m in source.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())


def test_modes_of_parts_are_inherited():
    source = Classifier().eval()
    source.backbone.stages[1].train()
    model = dynamize(source, input_size=TINY).model
    norms = [
        [m for m in s.modules() if isinstance(m, nn.BatchNorm2d)] for s in model.backbone.stages
    ]
    assert [[m.training for m in own] for own in norms] == [[False] * 4, [True] * 4]


def test_a_model_that_traces_is_not_run(monkeypatch):
    monkeypatch.setattr(dmnn_convert.dryrun.calls, "_run", None)
    assert dynamize(nn.Sequential(conv_norm(3, 8), block()), input_size=TINY)
    with pytest.raises(ArgumentError, match="NoneType"):
        dynamize(Classifier(), input_size=TINY)


def test_tensors_made_in_a_forward_are_carried_over():
    class Scaled(SumBlock):
        def forward(self, x):
            return self.second(self.first(x).relu()) * torch.tensor(0.5) + x * torch.tensor(2.0)

    source = randomised(nn.Sequential(conv_norm(3, 8), Scaled("plus"), Scaled("plus"))).eval()
    model = dynamize(source, input_size=TINY).model
    x = images(source, TINY)
    with torch.no_grad(), force_gates(copy.deepcopy(model), True), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


def test_tensors_that_differ_between_the_modes_keep_the_block_dense():
    class Scaled(SumBlock):
        def forward(self, x):
            scale = torch.tensor(0.5 if self.training else 1.0)
            return self.second(self.first(x).relu()) * scale + x

    (found,) = find_blocks(nn.Sequential(conv_norm(3, 8), Scaled("plus")))
    assert "differs between training and evaluation" in found.reason


@pytest.mark.parametrize("form", [OrderedDict, lambda **named: Output(**named), dict])
def test_a_model_with_its_blocks_in_its_own_forward_returns_its_own_kind(form):
    class Own(Inline):
        def forward(self, x):
            return form(logits=super().forward(x))

    source = randomised(Own()).eval()
    model = dynamize(source, input_size=TINY).model
    x = images(source, TINY)
    with torch.no_grad(), force_gates(copy.deepcopy(model), True), force_gates(model, True):
        got, expected = model(x), source(x)
    assert type(got) is type(expected)
    (a,), (b,) = tensors(got), tensors(expected)
    assert off_by(a, b) <= 1e-4


def test_a_block_that_reads_a_list_of_tensors_converts():
    class Lists(SumBlock):
        def forward(self, both):
            return super().forward(both[0])

    class Net(Wild):
        def forward(self, x):
            x = self.stem(x)
            return self.a([x, x])

    source = randomised(Net(None, a=Lists("plus"))).eval()
    model = dynamize(source, split="exact", input_size=TINY).model
    x = images(source, TINY)
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model(x), source(x)) <= 1e-4


# --- what is refused --------------------------------------------------------------------------


def test_where_nothing_can_be_converted_the_reasons_are_told():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv_norm(3, 3)

        def forward(self, x):
            while x.sum() > 0:
                x = self.conv(x) - 1
            return x

    with pytest.raises(NoBlocksFoundError) as caught:
        dynamize(Recurrent(), input_size=TINY)
    message = str(caught.value)
    assert "Recurrent" in message
    assert "it branches on a value that only a run knows" in message
    assert "no block was found inside it" in message


def test_blocks_that_all_run_twice_are_the_nearest_misses():
    source = Wild(lambda m, x: m.a(m.a(x)), a=block())
    with pytest.raises(NoBlocksFoundError, match="a is called 2 times in a forward pass"):
        dynamize(source, input_size=TINY)
    assert [b.reason for b in find_blocks(source)] == [None]  # without a size nothing is run


def test_a_model_of_several_inputs_gets_a_way_round():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = nn.Sequential(conv_norm(3, 8), block())

        def forward(self, x, words, mask=None):
            return self.vision(x).mean() * words.sum() if words.any() else self.vision(x)

    source = Pair()
    for call in (lambda: dynamize(source, input_size=TINY), lambda: find_blocks(source, TINY)):
        with pytest.raises(ArgumentError, match=r"also needs words; .*inplace=True"):
            call()
    dynamize(source.vision, input_size=TINY, inplace=True)
    with record_paths(source) as paths:
        source(torch.randn(2, *TINY), torch.ones(2))
    assert paths.gates.shape == (2, 2)


def test_an_input_size_that_does_not_fit_is_explained():
    with pytest.raises(ArgumentError, match=r"\(1, 16, 16\).*reads 3 channels"):
        dynamize(Classifier(), input_size=(1, 16, 16))


@pytest.mark.slow
def test_layers_that_an_untraceable_root_calls_itself_are_told_of():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.block = SumBlock("augmented")

        def forward(self, x):
            x = self.block(x)
            if x.sum() > 1e9:
                return x
            return x + self.b(torch.relu(self.a(x)))

    found = find_blocks(Root())
    assert [b.name for b in found if not b.reason] == ["block"]
    told = [b.reason for b in found if b.name == "Root"]
    assert len(told) == 1 and "its own layers ('a', 'b') are left as they are" in told[0]
