"""Converted models are drop-ins, inputs are untouched, bad arguments get the remedy."""

import copy
import importlib
import io
import itertools
import pickle
import warnings

import pytest
import timm
import torch
from nets import (
    NETS,
    Remembering,
    Residual,
    SumBlock,
    conv_norm,
    images,
    off_by,
    randomised,
    sums,
    unfilled,
)
from quick import one_in, slow_unless
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from dmnn_convert import (
    MultiPathBlock,
    dynamize,
    find_blocks,
    force_gates,
    gate_parameters,
    record_paths,
    set_execution,
)
from dmnn_convert.errors import (
    AlreadyConvertedError,
    ArgumentError,
    ConversionError,
    NoBlocksFoundError,
)
from dmnn_convert.nn import conversion_of, multi_path_blocks

SIZE = (3, 16, 16)
COPIED = ("option_a", "functional", "root_held", "inline", "closure", "chain", "bottlenecks")


CONVERT, SUB_BLOCKS = (
    importlib.import_module(f"dmnn_convert.convert.{name}") for name in ("dynamize", "sub_blocks")
)


def resnet18():
    return randomised(models.resnet18(num_classes=5))


def converted(name="functional", N=2, **options):
    model = resnet18() if name == "resnet18" else randomised(NETS[name].build())
    return dynamize(model.eval(), N, input_size=size_of(name), **options).model


def size_of(name):
    return (3, 32, 32) if name == "resnet18" else NETS[name].size


def output(model, x):
    with torch.no_grad():
        return model(x)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


def structure(model):
    """Everything about a model but the values of its tensors."""
    return [
        (
            name,
            type(m),
            m.training,
            list(m._parameters),
            list(m._buffers),
            list(m._forward_hooks.values()),
            list(m._forward_pre_hooks.values()),
            sorted(vars(m)),
        )
        for name, m in model.named_modules()
    ]


# --- copies -----------------------------------------------------------------------------------


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


ALIKE = ("chain", "functional", "inline", "drop_path")
"""Networks that the quick suite asks; the slow one asks them all."""
COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch_save": through_torch_save}


@pytest.mark.parametrize(
    ("name", "way"),
    slow_unless(
        lambda name, way: name in ALIKE and way == "deepcopy",
        itertools.product(COPIED, COPIES),
    ),
)
def test_copies_are_whole_and_independent(name, way):
    if name == "closure" and way != "deepcopy":
        pytest.skip("the classes of a closure cannot be pickled before conversion either")
    model = converted(name)
    x = images(model, size_of(name))
    expected = output(model, x)
    with torch.no_grad():
        model(x)  # leaves something in the chain, unless it cleans up
    copied = COPIES[way](model)
    assert same(copied, model)
    assert structure(copied)[0][3:5] == structure(model)[0][3:5]
    assert [n for n, _ in copied.named_modules()] == [n for n, _ in model.named_modules()]
    assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(output(copied, x), expected)
    assert conversion_of(copied).table == conversion_of(model).table
    assert conversion_of(copied).config == conversion_of(model).config
    with record_paths(copied) as paths, torch.no_grad():
        model(x)
        copied(x)
    assert len(paths.gates) == len(x)  # of the copy alone
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(output(model, x), expected)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_of_a_copy_still_trains(way):
    model = COPIES[way](COPIES[way](converted("functional"))).train()
    model(images(model, SIZE)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("Ema", one_in(2, [ModelEmaV3, ModelEmaV2]))
def test_ema_copies_follow(Ema):
    model = converted("resnet18")
    ema = Ema(model, decay=0.5)
    x = images(model, size_of("resnet18"))
    assert torch.equal(output(ema.module, x), output(model, x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update(model)
    key = "layer1.0.multi_path.controller.w1.weight"
    assert torch.allclose(ema.module.state_dict()[key], model.state_dict()[key] - 0.5)


def test_state_dicts_carry_everything():
    model, other = converted(), converted()
    file = io.BytesIO()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert not same(other, model)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = images(model, size_of("functional"))
    assert torch.equal(output(other, x), output(model, x))


# --- what stays -------------------------------------------------------------------------------


def test_the_keys_of_untouched_parts_stay():
    source = resnet18()
    model = dynamize(source, where="layer[34].*", input_size=(3, 64, 64)).model
    before, after = source.state_dict(), model.state_dict()
    replaced = [f"layer{s}.{i}.{m}" for s in (3, 4) for i in (0, 1) for m in PARTS]
    kept = [k for k in before if not k.startswith(tuple(replaced))]
    assert "layer3.0.downsample.0.weight" in kept
    assert all(torch.equal(after[k], before[k]) for k in kept)
    new = set(after) - set(before)
    assert not set(before) - set(kept) & set(after)
    assert all(".multi_path." in k for k in new)


PARTS = ("conv1.", "bn1.", "conv2.", "bn2.")


def test_the_root_keeps_its_class_and_methods():
    source = randomised(timm.create_model("resnet10t", num_classes=5)).eval()
    model = dynamize(source, input_size=(3, 64, 64)).model
    assert type(model) is type(source)
    x = images(source, (3, 64, 64))
    with torch.no_grad(), force_gates(model, True):
        assert off_by(model.forward_features(x), source.forward_features(x)) <= 1e-4
        assert off_by(model.forward_head(model.forward_features(x)), source(x)) <= 1e-4
    assert model.get_classifier() is model.fc
    model.reset_classifier(7)
    assert output(model, x).shape == (4, 7)
    assert model.num_classes == 7
    assert model.group_matcher() == source.group_matcher()


@pytest.mark.parametrize("name", ["inline", "root_held"])
def test_a_rewritten_root_is_still_of_its_class(name):
    source = NETS[name].build()
    model = converted(name)
    assert isinstance(model, type(source))
    assert type(model).__name__ == type(source).__name__


def test_blocks_are_still_of_their_class_and_keep_their_attributes():
    source = resnet18()
    source.layer1[0].note = {"kept": [1, 2]}
    model = dynamize(source, input_size=SIZE).model
    block = model.layer1[0]
    assert isinstance(block, BasicBlock)
    assert type(block).__name__ == "BasicBlock"
    assert block.expansion == BasicBlock.expansion
    assert block.note == {"kept": [1, 2]}
    assert (block.stride, model.layer2[0].stride) == (1, 2)
    assert sum(isinstance(m, BasicBlock) for m in model.modules()) == 8
    assert sum(isinstance(m, MultiPathBlock) for m in model.modules()) == 8


def test_hooks_on_what_is_kept_still_fire():
    source = resnet18().eval()
    calls = []
    for path in ("", "conv1", "layer2", "layer2.0", "layer2.0.downsample", "avgpool"):
        module = source.get_submodule(path)
        module.register_forward_pre_hook(lambda m, _, path=path: calls.append(f"> {path}"))
        module.register_forward_hook(lambda m, _, out, path=path: calls.append(f"< {path}"))
    x = images(source, SIZE)
    output(source, x)
    before = list(calls)
    model = dynamize(source, input_size=SIZE).model
    calls.clear()
    output(model, x)
    assert calls == before
    assert len(calls) == 12


def test_a_hook_on_an_enclosing_block_still_changes_its_output():
    source = sums("plus").eval()
    source[2].register_forward_hook(lambda m, inputs, out: torch.zeros_like(out))
    model = dynamize(source, input_size=SIZE).model
    seen = []
    model[3].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    output(model, images(source, SIZE))
    assert not seen[0].any()


@pytest.mark.filterwarnings("error")
def test_a_backward_hook_on_an_enclosing_block_still_fires():
    source = sums("plus", after=False)
    hits = []
    source[2].register_full_backward_hook(lambda *_: hits.append(1))
    model = dynamize(source, input_size=SIZE).model
    model.train()(images(model, SIZE)).sum().backward()
    assert hits == [1]


def test_frozen_parameters_stay_frozen():
    source = resnet18()
    for parameter in source.layer1.parameters():
        parameter.requires_grad_(False)
    model = dynamize(source, input_size=SIZE).model
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith("layer1.") and ".controller." not in n for n in frozen)
    thawed = [n for n, p in model.layer1.named_parameters() if p.requires_grad]
    assert all("controller" in n for n in thawed)


def test_the_mode_of_each_part_is_inherited():
    source = resnet18().eval()
    source.layer2.train()
    model = dynamize(source, input_size=SIZE).model
    assert not model.training
    assert not any(m.training for m in model.layer1.modules())
    assert all(m.training for m in model.layer2.modules())


def test_gate_parameters_are_the_controllers_alone():
    model = converted()
    own = {id(p) for p in gate_parameters(model)}
    named = {n for n, p in model.named_parameters() if id(p) in own}
    assert named == {n for n, _ in model.named_parameters() if ".controller." in n}
    assert named


# --- devices, precisions, layouts, modes ------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "name",
    slow_unless(("functional",).__contains__, ["resnet18", "chain", "functional", "bottlenecks"]),
)
def test_precisions_after_conversion(name, dtype):
    model = converted(name)
    x = images(model, size_of(name))
    expected = output(model, x)
    for execution in ("skip", "masked"):
        set_execution(model, execution)
        got = output(model.to(dtype), x.to(dtype))
        assert got.dtype == dtype
        assert off_by(got.double(), expected.double()) <= (1e-4 if dtype is torch.float64 else 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", slow_unless({torch.bfloat16}.__contains__, [torch.bfloat16, torch.float64])
)
def test_precisions_before_conversion(dtype):
    source = resnet18().to(dtype)
    model = dynamize(source, input_size=SIZE).model
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert output(model, images(source, SIZE)).dtype == dtype


@pytest.mark.slow
def test_mixed_precision_runs_in_both_modes():
    model = converted("resnet18")
    x = images(model, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16), record_paths(model) as paths:
        model.eval()(x)
        model.train()(x).float().sum().backward()
    assert paths.gates.dtype == torch.float32
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", slow_unless("chain".__eq__, ["resnet18", "chain"]))
def test_channels_last(name):
    model = converted(name)
    x = images(model, size_of(name))
    expected = output(model, x)
    model = model.to(memory_format=torch.channels_last)
    for gates in (True, 0.5):
        for execution in ("skip", "masked"):
            set_execution(model, execution)
            with force_gates(model, gates):
                straight = output(model, x)
            with force_gates(model, gates):
                assert (
                    off_by(output(model, x.to(memory_format=torch.channels_last)), straight) < 1e-4
                )
    with force_gates(model, True):
        assert off_by(output(model, x), expected) < 1e-4


def test_moves_between_devices():
    model = converted("functional")
    assert {t.device.type for t in model.to("meta").state_dict().values()} == {"meta"}


def test_modes_round_trip():
    model = converted("dropout_inside")
    x = images(model, SIZE)
    expected = output(model, x)
    model.train().eval()
    assert torch.equal(output(model, x), expected)
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())


def test_printing_and_walking_work():
    model = converted("option_a")
    assert "MultiPathBlock" in repr(model)
    assert "hidden-channel" in repr(model)
    assert len(list(model.named_parameters())) == len({n for n, _ in model.named_parameters()})
    assert len(multi_path_blocks(model)) == 9


def test_parameters_share_no_memory_with_the_source():
    source = resnet18()
    model = dynamize(source, input_size=SIZE).model
    theirs = {t.data_ptr() for t in source.state_dict().values() if t.numel()}
    assert not theirs & {t.data_ptr() for t in model.state_dict().values() if t.numel()}
    own = [t for t in model.state_dict().values() if t.numel()]
    assert len({t.untyped_storage().data_ptr() for t in own}) == len(own)


# --- the input --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_unless(ALIKE.__contains__, [*COPIED, "options", "drop_path"]))
def test_the_input_is_left_alone(name):
    source = randomised(NETS[name].build())
    source.register_forward_hook(lambda *_: None)
    before, values = structure(source), {k: v.clone() for k, v in source.state_dict().items()}
    versions = [(id(t), t._version) for t in source.state_dict(keep_vars=True).values()]
    dynamize(source, input_size=size_of(name), num_categories=3)
    assert structure(source) == before
    assert [(id(t), t._version) for t in source.state_dict(keep_vars=True).values()] == versions
    assert all(torch.equal(v, values[k]) for k, v in source.state_dict().items())


def test_what_a_forward_remembers_is_left_alone():
    source = Remembering()
    dynamize(source, input_size=SIZE)
    assert (source.last, source.calls) == (None, 0)


@pytest.mark.parametrize("name", slow_unless(ALIKE.__contains__, COPIED))
def test_in_place_returns_the_same_object_changed(name):
    source = randomised(NETS[name].build()).eval()
    x = images(source, size_of(name))
    expected = output(source, x)
    model, _ = dynamize(source, split="exact", input_size=size_of(name), inplace=True)
    assert model is source
    assert multi_path_blocks(source)
    with force_gates(source, True):
        assert off_by(output(source, x), expected) <= 1e-4


LATE = {"flops_table": CONVERT, "rewrite": CONVERT, "_multi_path_block": SUB_BLOCKS}


@pytest.mark.parametrize(
    ("name", "step"),
    slow_unless(
        lambda name, step: name == "functional",
        itertools.product([*COPIED, "resnet18"], LATE),
    ),
)
def test_a_failure_in_place_leaves_the_input_as_it_was(name, step, monkeypatch):
    source = resnet18() if name == "resnet18" else randomised(NETS[name].build())
    source.eval().register_forward_hook(lambda *_: None)
    before, values = structure(source), {k: v.clone() for k, v in source.state_dict().items()}
    x = images(source, size_of(name))
    expected = output(source, x)
    place = LATE[step]
    real = getattr(place, step)
    calls = []

    def fail(*args, **kwargs):
        calls.append(real(*args, **kwargs))  # all the harm is done first
        raise RuntimeError("no more memory")

    monkeypatch.setattr(place, step, fail)
    with pytest.raises(Exception, match="no more memory"):
        dynamize(source, input_size=size_of(name), inplace=True)
    assert calls
    assert structure(source) == before
    assert list(source.state_dict()) == list(values)
    assert all(torch.equal(v, values[k]) for k, v in source.state_dict().items())
    assert torch.equal(output(source, x), expected)
    monkeypatch.undo()
    assert multi_path_blocks(dynamize(source, input_size=size_of(name), inplace=True).model)


def test_an_interrupt_in_place_leaves_the_input_as_it_was(monkeypatch):
    source = resnet18()
    before = structure(source)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CONVERT, "flops_table", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dynamize(source, input_size=SIZE, inplace=True)
    assert structure(source) == before


# --- what is refused --------------------------------------------------------------------------


def test_converting_twice_says_so():
    model = converted()
    for call in (dynamize, find_blocks):
        with pytest.raises(AlreadyConvertedError, match="already converted"):
            call(model)
    with pytest.raises(AlreadyConvertedError, match="already converted"):
        dynamize(nn.Sequential(model, nn.ReLU()), inplace=True)


def compiled():
    return torch.compile(sums("plus"), backend="eager")


def compiled_in_place():
    model = sums("plus")
    model.compile(backend="eager")
    return model


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(conv_norm(3, 8)))


def traced_child():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.trace(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4)))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))


def integers():
    model = sums("plus")
    model.scale = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)
    return model


def complex_numbers():
    return nn.Sequential(sums("plus"), nn.Conv2d(8, 8, 1, dtype=torch.complex64))


def lazy_but_loaded():
    """Has its weights, but has never run, so it does not know its own channels."""
    model = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), SumBlock("plus"))
    like = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), SumBlock("plus"))
    model.load_state_dict(like.state_dict())
    return model


def meta():
    with torch.device("meta"):
        return sums("plus")


REFUSED = {
    "data_parallel": (
        lambda: nn.DataParallel(sums("plus")),
        ConversionError,
        r"DataParallel.*model\.module",
    ),
    "compiled": (compiled, ConversionError, "compile after"),
    "compiled_in_place": (compiled_in_place, ConversionError, "compile after"),
    "scripted": (scripted, ConversionError, "TorchScript.*eager model"),
    "traced_child": (traced_child, ConversionError, "TorchScript.*eager model"),
    "quantised": (quantised, ConversionError, "quantised.*float model"),
    "lazy": (
        lambda: nn.Sequential(sums("plus"), nn.LazyConv2d(3, 3)),
        ConversionError,
        "lazy.*forward pass first",
    ),
    "lazy_but_loaded": (
        lazy_but_loaded,
        ConversionError,
        r"0 is lazy .*Run one forward pass first: model\(images\)",
    ),
    "meta": (meta, ConversionError, "meta device.*to_empty"),
    "integers": (integers, ConversionError, r"scale is torch.int64.*register_buffer"),
    "complex_numbers": (complex_numbers, ConversionError, r"is complex \(torch\.complex64\).*real"),
    "a function": (lambda: torch.relu, ArgumentError, "expected an nn.Module"),
    "nothing": (lambda: None, ArgumentError, "NoneType, expected an nn.Module"),
    "a class": (lambda: Remembering, ArgumentError, r"instance: .*\(\)"),
    "a state dict": (lambda: sums("plus").state_dict(), ArgumentError, "expected an nn.Module"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_converted_come_with_the_remedy(name):
    make, error, advice = REFUSED[name]
    model = make()
    for call in (dynamize, find_blocks):
        with pytest.raises(error, match=advice) as caught:
            call(model)
        assert call.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"N": 0}, "N=0"),
        ({"N": -2}, "N=-2"),
        ({"N": 2.0}, "N=2.0"),
        ({"N": True}, "N=True"),
        ({"N": "2"}, "N='2'"),
        ({"N": None}, "N=None"),
        ({"N": {}}, "N={}"),
        ({"N": {"*": 0}}, "leaves every block dense"),
        ({"N": {"*": -1}}, r"N={'\*': -1}.*or with 0 for blocks that stay dense"),
        ({"N": {"*": 2.0}}, r"N={'\*': 2.0}"),
        ({"N": {"*": False}}, r"N={'\*': False}"),
        ({"N": {2: 2}}, "N={2: 2}.*names or patterns"),
        ({"N": [2, 3]}, r"N=\[2, 3\]"),
        ({"split": "best"}, "'best'.*'matched', 'exact'"),
        ({"split": None}, "split=None"),
        ({"gate": 3}, "GateConfig"),
        ({"num_categories": 0}, "num_categories=0"),
        ({"input_size": 224}, "input_size"),
        ({"input_size": ()}, "input_size"),
        ({"input_size": (3, 16.0, 16)}, "input_size"),
        ({"input_size": (3, -16, 16)}, "input_size"),
        ({"input_size": "3,16,16"}, "input_size"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ArgumentError, match=words):
        dynamize(sums("plus"), **options)


@pytest.mark.parametrize(
    "size",
    one_in(
        2, [((1, 16, 16),), ((16, 16),), ((1, 3, 16, 16),), ((3,),), ((3, 16),), ((3, 16, 16, 16),)]
    ),
)
@pytest.mark.parametrize("inplace", slow_unless(bool, [True, False]))
def test_a_wrong_input_size_is_explained_in_the_users_terms(size, inplace):
    source = NETS["inline"].build() if len(size) != 4 else resnet18()
    before = structure(source)
    with pytest.raises(ArgumentError) as caught:
        dynamize(source, input_size=size, inplace=inplace)
    message = str(caught.value)
    assert str(size) in message
    assert "reads 3 channels" in message
    assert not any(word in message.lower() for word in ("proxy", "fx", "graphmodule", "meta"))
    assert structure(source) == before


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("layer[34].*", 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (["layer1.0", "layer4.1"], 2),
                (lambda block: block.shortcut == "projection", 3),
                ("layer1.0", 1),
                (("layer1.*", "layer2.0"), 3),
                (lambda block: block.hidden > 100, 6),
                ({"layer1.0"}, 1),
                ((name for name in ["layer1.1"]), 1),
            ]
        ),
    ],
)
def test_where_chooses_blocks(where, count):
    model, table = dynamize(resnet18(), input_size=SIZE, where=where)
    assert len(multi_path_blocks(model)) == count
    assert len(table.blocks) == count


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_model_that_has_run_is_converted():
    model = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), SumBlock("plus"))
    model(torch.zeros(1, *SIZE))
    assert dynamize(model, input_size=SIZE).table.blocks == ("1",)


def test_integer_buffers_do_no_harm():
    model = sums("plus")
    model.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
    model[2].register_buffer("mask", torch.ones(2, dtype=torch.bool))
    converted = dynamize(model, input_size=SIZE).model
    assert converted.steps.dtype is torch.int64
    assert converted[2].mask.dtype is torch.bool


@pytest.mark.parametrize(
    ("where", "words"),
    one_in(
        2,
        [
            ("layer9.0", "'layer9.0'.*layer1.0"),
            (["layer1.0", "layre1.1"], "'layre1.1'"),
            ([], "selects none"),
            (lambda block: False, "selects none"),
            (3, "where"),
            ([3], "where"),
        ],
    ),
)
def test_where_that_selects_nothing_is_explained(where, words):
    with pytest.raises(ArgumentError, match=words):
        dynamize(resnet18(), input_size=SIZE, where=where)


@pytest.mark.parametrize("arch", slow_unless("vgg16".__eq__, ["vgg16", "densenet121"]))
def test_models_without_blocks_list_the_nearest_misses(arch):
    model = unfilled(lambda: models.get_model(arch))
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    with pytest.raises(NoBlocksFoundError, match="Nearest misses") as caught:
        dynamize(model)
    assert f"{convolutions} convolutions" in str(caught.value)
    assert type(model).__name__ in str(caught.value)


def test_near_misses_are_listed_with_their_reason():
    blocks = [Residual(nn.Sequential(*conv_norm(8, 8, groups=8))) for _ in range(7)]
    with pytest.raises(NoBlocksFoundError) as caught:
        dynamize(nn.Sequential(conv_norm(3, 8), *blocks))
    message = str(caught.value)
    assert message.count("grouped convolutions only") == 5
    assert "and 2 more" in message


def test_a_model_that_cannot_be_traced_is_converted_whole_or_in_place():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = sums("plus")

        def forward(self, x):
            while x.sum() > 0:
                x = x - 1
            return self.backbone(x)

    model = Loop()
    whole = dynamize(model, input_size=SIZE).model
    dynamize(model.backbone, input_size=SIZE, inplace=True)
    for converted_model in (model, whole):
        assert len(multi_path_blocks(converted_model)) == 2
        assert output(converted_model, images(model, SIZE)).shape == (4, 8, 16, 16)


def test_an_attribute_that_stands_in_the_way_is_no_trap():
    source = nn.Sequential(conv_norm(3, 8), SumBlock("plus"))
    source[1].multi_path = "mine"
    before = structure(source)
    try:
        model = dynamize(source, input_size=SIZE, inplace=True).model
    except ConversionError as error:
        assert "multi_path" in str(error)
        assert structure(source) == before
    else:
        assert model[1].multi_path == "mine"
        assert multi_path_blocks(model)
