"""A network that normalises its images in place gets what its twin gets that does not.

Whatever gives the same images to several passes has to copy them: the second pass would see images
that are normalised twice.
"""

import pytest
import torch
from finetune_data import image_folders, tiny_recipe
from safetensors.torch import load_file
from torch import nn

import dmnn_convert as dc
from dmnn_convert.finetune import finetune
from dmnn_convert.nn import controllers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        out = self.norm1(self.conv1(x)).relu()
        return (x + self.norm2(self.conv2(out))).relu()


class Net(nn.Module):
    def __init__(self, writes, classes=4):
        super().__init__()
        self.writes = writes
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = x.sub_(0.5).div_(0.25) if self.writes else (x - 0.5) / 0.25
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def plain(num_classes=3):
    return Net(False, num_classes)


def writing(num_classes=3):
    return Net(True, num_classes)


def batches():
    drawn = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 3, 8, 8, generator=drawn), torch.randint(4, (8,), generator=drawn))
        for _ in range(3)
    ]


def converted(writes):
    torch.manual_seed(0)
    net = Net(writes).eval()
    model, table = dc.dynamize(net, N=4, input_size=(3, 8, 8))
    assert len(table.sizes) == 2
    for controller in controllers(model):  # gates that differ from image to image
        nn.init.normal_(controller.w1.weight)
        nn.init.normal_(controller.w3.weight)
    return model, table


def logits(cascade):
    with dc.record_exits(cascade) as exits, torch.no_grad():
        given = batches()[0][0]
        kept = given.clone()
        answers = cascade(given)
    assert given.equal(kept)
    return answers, exits.levels


def of_fitted_cascade(model, table, given):
    cascade = dc.Cascade.fit(model, given, levels=(0.25, 0.5, 1.0), flops_ratio=0.9)
    return (*logits(cascade), cascade.thresholds, torch.tensor(cascade.fitted.top1))


def of_cascade_that_asks_all(model, table, given):
    networks = [dc.freeze(model, level) for level in (0.25, 0.5, 1.0)]
    return logits(dc.Cascade(networks, [2.0, 2.0]))


def of_level_losses(model, table, given):
    losses = dc.level_losses(model.train(), *given[0], step=2)
    losses.total.backward()
    return (*losses, model.stem.weight.grad)


def of_budget(model, table, given):
    dc.set_budget(model, given, 0.7)
    return of_evaluation(model, table, given)


def of_evaluation(model, table, given):
    found = [dc.evaluate(model, table, given) for _ in range(2)]
    assert found[0].top1 == found[1].top1
    return (torch.tensor([found[0].top1, found[0].loss]),)


def of_search(model, table, given):
    return (dc.search_levels(model, given, 0.7),)


def of_level_statistics(model, table, given):
    dc.estimate_levels(model, given, (0.25, 0.5, 1.0))
    return tuple(model.state_dict().values())


def of_curve(model, table, given):
    found = dc.curve(model, given, held_out=given)
    return (torch.tensor([(point.flops_ratio, point.top1) for point in found.rows]),)


def of_refit(model, table, given):
    dc.calibrate(model, given)
    dc.reestimate_norms(model, given)
    return tuple(model.state_dict().values())


def of_reconstruction(model, table, given):
    torch.manual_seed(0)
    source = Net(model.writes).eval()
    dc.reconstruct(model, source, given)
    return tuple(model.state_dict().values())


def of_prepared(model, table, given):
    ready = dc.prepare(model, given[0][0], engine="torch", batch_sizes=(8,))
    return (ready(given[0][0].clone()),)


@pytest.mark.parametrize(
    "of",
    [
        of_fitted_cascade,
        of_cascade_that_asks_all,
        of_level_losses,
        of_budget,
        of_evaluation,
        of_search,
        of_level_statistics,
        pytest.param(of_curve, marks=pytest.mark.slow),
        of_refit,
        of_reconstruction,
        of_prepared,
    ],
)
def test_passes_do_not_see_each_others_writes(of):
    given, found = batches(), []
    for writes in (False, True):
        model, table = converted(writes)
        found.append(of(model, table, given))
    for (images, _), (kept, _) in zip(given, batches(), strict=True):
        assert images.equal(kept)
    for plain, written in zip(*found, strict=True):
        torch.testing.assert_close(written, plain)


@pytest.mark.parametrize("shape", [{}, {"levels": (0.5, 1.0)}], ids=["gates", "levels"])
def test_such_networks_are_taught(shape, tmp_path):
    torch.manual_seed(0)
    torch.save(plain().state_dict(), tmp_path / "weights.pth")
    data, trained = image_folders(tmp_path / "images"), []
    for build in (plain, writing):
        recipe = tiny_recipe(
            data,
            tmp_path / build.__name__,
            arch=f"{__file__}:{build.__name__}",
            checkpoint=str(tmp_path / "weights.pth"),
            distill=0.5,
            epochs=1,
            **shape,
        )
        finetune(recipe)
        trained.append(load_file(tmp_path / build.__name__ / "final" / "model.safetensors"))
    torch.testing.assert_close(*trained)


@pytest.mark.parametrize(
    "engine", ["onnxruntime", "openvino", pytest.param("torch", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("form", ["level", "cascade"])
def test_such_networks_deploy(engine, form, tmp_path):
    pytest.importorskip(engine)
    images, answers = batches()[0][0], []
    for writes in (False, True):
        model, _ = converted(writes)
        network = dc.freeze(model, 0.5)
        if form == "cascade":
            network = dc.Cascade([network, dc.freeze(model, 1.0)], [2.0])
        folder = dc.deploy(network, tmp_path / str(writes), images, engine=engine)
        given = images.numpy().copy()
        given.flags.writeable = False
        answers.append(dc.load_deployed(folder)(given))
    assert images.equal(batches()[0][0])
    torch.testing.assert_close(*map(torch.from_numpy, answers))
