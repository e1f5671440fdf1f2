"""Conversion, prepared forms, benchmark and fine-tuning on a GPU."""

import json
import logging
from contextlib import contextmanager

import pytest
import torch
import torchvision.models as zoo
from click.testing import CliRunner
from finetune_data import NET, image_folders, tiny_recipe
from nets import ROOT, off_by, randomised
from torch import nn

from dmnn_convert import (
    ArgumentError,
    Cascade,
    DMNNLoss,
    MultiPathBlock,
    dynamize,
    force_gates,
    freeze,
    prepare,
    record_exits,
    record_paths,
    set_execution,
)
from dmnn_convert.cli.convert import cli
from dmnn_convert.evaluation import Evaluation
from dmnn_convert.finetune import finetune
from dmnn_convert.nn import controllers
from dmnn_convert.runtime.forms import branches_rightly
from dmnn_convert.runtime.graphs import Graphs, run_beside
from dmnn_convert.runtime.static_network import graph_sizes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SIZE = 64
NETS = {
    "resnet18": (zoo.resnet18, {}),
    "resnet18-shared": (zoo.resnet18, {"tail_norm": "shared"}),
    "resnet18-N4": (zoo.resnet18, {"N": 4}),
    "resnet50": (zoo.resnet50, {}),
    "resnet50-exact": (zoo.resnet50, {"split": "exact"}),
    "mobilenet_v2": (zoo.mobilenet_v2, {}),
    "efficientnet_b0": (zoo.efficientnet_b0, {}),
    "regnet_x": (zoo.regnet_x_400mf, {}),
    "mobilenet_v3": (zoo.mobilenet_v3_large, {}),  # prepared blocks beside blocks that stay
}
WAYS = ("together", "masked", "graphed")


@pytest.fixture(autouse=True)
def exact(tmp_path, monkeypatch):
    """Keep TF32 out of what is compared, and measurements out of the user's folder."""
    monkeypatch.setenv("DMNN_CONVERT_CACHE", str(tmp_path / "autotune.json"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def converted(name):
    build, options = NETS[name]
    options = {"N": 2, "input_size": (3, SIZE, SIZE), **options}
    model = dynamize(randomised(build()), **options).model.eval()
    for controller in controllers(model):
        nn.init.normal_(controller.w3.weight, 0, 0.5)
        controller.w3.bias.data.zero_()
    return model


def images(count, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module", params=NETS)
def pair(request):
    torch.manual_seed(0)
    with without_tf32():
        model = converted(request.param).cuda()
        return model, prepare(model, images(1).cuda(), autotune=False)


@contextmanager
def without_tf32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("name", ["resnet18", "resnet18-shared", "mobilenet_v2"])
def test_a_training_step_is_that_of_the_cpu(name):
    build, options = NETS[name]
    found = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model, table = dynamize(build(num_classes=10), input_size=(3, SIZE, SIZE), **options)
        model = model.double().to(device).train()
        for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
        gates = (torch.rand(4, sum(table.sizes), generator=seeded(2)) < 0.6).float()
        with record_paths(model) as paths, force_gates(model, gates):
            logits = model(images(4).double().to(device))
        labels = torch.arange(4, device=device)
        loss = DMNNLoss(table, target=0.5)(logits, labels, paths)
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[device] = loss.detach().cpu(), grads.cpu()
        assert paths.gates.device.type == device
    assert torch.allclose(found["cpu"][0], found["cuda"][0], rtol=1e-8)
    assert off_by(found["cuda"][1], found["cpu"][1]) < 1e-6


def test_skipping_gives_what_masking_gives(pair):
    model, x = pair[0], images(5).cuda()
    got = {}
    for execution in ("masked", "skip"):
        set_execution(model, execution)
        with torch.no_grad(), force_gates(model, 0.5):
            got[execution] = model(x)
    assert off_by(got["skip"], got["masked"]) < 1e-4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gates", [True, 0.3, 0.7, None])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_way_gives_what_the_model_gives(pair, way, gates, batch):
    model, ready = pair
    x = images(batch).cuda()
    set_execution(model, "masked")
    for _ in range(2):  # the second time, a graph that exists is replayed
        with torch.no_grad(), forced(model, gates), record_paths(model) as expected_paths:
            expected = model(x)
        ready.ways[tuple(x.shape)] = way
        with forced(ready, gates):
            got = ready(x)
        assert off_by(got, expected) < 1e-4
        with forced(ready, gates), record_paths(ready.network) as paths:
            ready(x)
        assert torch.equal(paths.gates, expected_paths.gates)
        x = x.flip(0) + 0.1


@pytest.mark.parametrize("gates", [True, False, 0.3, 0.7, None])
def test_gates_are_nodes_of_a_graph(pair, gates):
    model, ready = pair
    if any(isinstance(m, MultiPathBlock) for m in ready.network.modules()):
        pytest.skip("a block that could not be prepared reads its gates")
    x = images(1).cuda()
    for _ in range(2):  # the second time, a graph that exists is replayed
        with torch.no_grad(), forced(model, gates):
            expected = model(x)
        with torch.no_grad(), forced(ready, gates):
            assert off_by(ready.run_branch_graph(x), expected) < 1e-4
        x = x.flip(2) * 3


def test_what_branches_rightly_may_be_chosen(pair):
    _, ready = pair
    kept = not any(isinstance(m, MultiPathBlock) for m in ready.network.modules())
    assert branches_rightly(ready, images(1).cuda()) == kept


@contextmanager
def forced(model, gates):
    if gates is None:
        yield
    else:
        with force_gates(model, gates):
            yield


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_other_sizes_run(pair):
    model, ready = pair
    set_execution(model, "masked")
    for x in (images(3, 96).cuda(), images(2).cuda()):
        with torch.no_grad(), force_gates(model, 0.5):
            expected = model(x)
        with force_gates(ready, 0.5):
            assert off_by(ready(x), expected) < 1e-4


def test_measures_its_ways_and_says_what_saves_nothing(caplog):
    model = converted("resnet18").cuda()
    with caplog.at_level(logging.WARNING):
        ready = prepare(model, images(1).cuda(), batch_sizes=(1, 4))
    assert set(ready.ways) == {(1, 3, SIZE, SIZE), (4, 3, SIZE, SIZE)}
    masked = [way for way in ready.ways.values() if way == "graphed"]
    assert caplog.text.count("save no time") == len(masked)
    assert set(ready.ways.values()) <= {"graphed", "together"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = converted("resnet18").cuda().to(dtype)
    x = images(4).cuda().to(dtype)
    ready = prepare(model, x, batch_sizes=(4,), autotune=False)
    set_execution(model, "masked")
    with torch.no_grad(), force_gates(model, 0.5):
        expected = model(x)
    for way in WAYS:
        ready.ways[tuple(x.shape)] = way
        with force_gates(ready, 0.5):
            got = ready(x)
        assert got.dtype == dtype
        assert off_by(got.float(), expected.float()) < 0.05


def test_under_autocast_no_graph_of_another_dtype_is_taken():
    model = converted("resnet18").cuda()
    ready = prepare(model, images(2).cuda(), batch_sizes=(2,), autotune=False)
    x = images(2).cuda()
    with force_gates(ready, True):
        exact = ready(x)
        with torch.autocast("cuda", torch.bfloat16):
            rough = ready(x)
    assert rough.dtype == torch.bfloat16
    assert off_by(rough.float(), exact) < 0.05


def test_a_graph_made_in_inference_mode_runs_outside_it():
    ready = prepare(converted("resnet18").cuda(), images(1).cuda(), autotune=False)
    with torch.inference_mode():
        expected = ready(images(1).cuda())
    assert off_by(ready(images(1).cuda()), expected.clone()) < 1e-6


def test_levels_run_as_graphs_and_a_cascade_answers_as_before():
    model = converted("resnet18-N4").cuda()
    networks = [freeze(model, level) for level in (0.25, 0.5, 1.0)]
    x = images(24).cuda()
    with torch.no_grad():
        top = networks[0](x).softmax(-1).topk(2).values
    middle = float((top[:, 0] - top[:, 1]).sort().values[11:13].mean())  # no image's own
    cascade = Cascade(networks, [middle, middle])
    ready = prepare(cascade, x, batch_sizes=(24,))
    for count in (24, 17, 1, 40):
        with record_exits(cascade) as before, torch.no_grad():
            expected = cascade(x.repeat(2, 1, 1, 1)[:count])
        with record_exits(ready) as after:
            got = ready(x.repeat(2, 1, 1, 1)[:count])
        assert off_by(got, expected) < 1e-4
        assert torch.equal(before.levels, after.levels)
    sizes = {key[0][0] for padded in ready.networks[1:] for key in padded.network.graphs._held}
    assert sizes and sizes <= set(graph_sizes([24]))
    level = prepare(networks[1], x, batch_sizes=(24,))
    with torch.no_grad():
        assert off_by(level(x), networks[1](x)) < 1e-4
    assert [key[0][0] for key in level.graphs._held] == [24]


class Asking(nn.Module):
    """A network that looks at what its GPU holds."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) if x.abs().sum() > 0 else self.model(x + 1)


def test_a_model_that_cannot_be_captured_runs_kernel_by_kernel(caplog):
    model = Asking(converted("resnet18").cuda()).eval()
    with caplog.at_level(logging.WARNING):
        ready = prepare(model, images(2).cuda(), batch_sizes=(2,), autotune=False)
    assert "kernel by kernel" in caplog.text
    set_execution(model, "masked")
    with torch.no_grad():
        assert off_by(ready(images(2).cuda()), model(images(2).cuda())) < 1e-4


def test_images_on_the_cpu_are_refused():
    ready = prepare(converted("resnet18").cuda(), images(1).cuda(), autotune=False)
    with pytest.raises(ArgumentError, match=r"images\.to"):
        ready(images(1))


def test_a_graph_runs_what_began_beside():
    graphs, x = Graphs(), torch.arange(6.0, device="cuda")

    def call(x):
        square = run_beside(lambda: x * x, x.device)
        return (x + 1) * square()

    for _ in range(3):
        x = x + 1
        assert torch.equal(graphs.run("call", call, x), (x + 1) * x * x)
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        assert torch.equal(graphs.run("call", call, x), (x + 1) * x * x)
    assert len(graphs._held) == 2


def test_whichever_streams_a_graph_gets_its_controllers_decide_alike():
    model = converted("mobilenet_v2").cuda()
    ready, x = prepare(model, images(1).cuda(), autotune=False), images(5).cuda()
    set_execution(model, "masked")
    with torch.no_grad():
        expected = model(x)
    ready.ways[tuple(x.shape)] = "graphed"
    for _ in range(40):  # PyTorch has 32 streams, which it hands out in turn
        ready.graphs = Graphs()
        assert off_by(ready(x), expected) < 1e-4


def test_the_masked_form_compiles_whole():
    model = dynamize(zoo.resnet18(num_classes=4), input_size=(3, SIZE, SIZE)).model.cuda().train()
    torch._dynamo.reset()
    with force_gates(model, True):
        expected = model(images(4).cuda())
        got = torch.compile(model, fullgraph=True, backend="eager")(images(4).cuda())
    assert off_by(got, expected) < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_benchmark(dtype):
    net = f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20"
    words = ["--arch", net, "--input-size", "32", "--rounds", "2", "--batch", "1", "--batch", "4"]
    words += ["--device", "cuda", "--dtype", dtype, "--rate", "0.5", "--format", "json"]
    done = CliRunner().invoke(cli, ["benchmark", *words])
    assert done.exit_code == 0, done.output
    forms = {t["form"] for t in json.loads(done.stdout)}
    dense = {"dense, eager", "dense, packed", "dense, graphed"}
    dynamic = {"masked", "skipping", "prepared", "prepared, skipping", "static"}
    assert forms == dense | dynamic


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_fine_tuning_ends_in_a_network_that_is_evaluated(tmp_path, amp):
    data = image_folders(tmp_path / "images")
    recipe = tiny_recipe(
        data,
        tmp_path / "run",
        weights="random",
        workers=1,
        device="cuda",
        amp=amp,
        channels_last=True,
        ema=0.9,
    )
    result = finetune(recipe)
    assert isinstance(result.evaluation, Evaluation)
    words = [str(tmp_path / "run" / "final"), "--arch", NET, "--data", str(data)]
    done = CliRunner().invoke(cli, ["evaluate", *words, "--device", "cuda", "--format", "json"])
    assert done.exit_code == 0, done.output
