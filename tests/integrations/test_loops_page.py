"""The code of docs/loops.md runs as it stands, its diffs on scripts in little."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from small_nets import images
from torch.utils.data import DataLoader, TensorDataset

PAGE = Path(__file__).parents[2] / "docs" / "loops.md"


def block(title, kind="python", number=0):
    """Return one block of code of a section."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)[number]


def ran(code, **names):
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.mark.slow
def test_the_loop_of_the_page_runs(capsys):
    ran(block("Your own"))
    assert "of the FLOPs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_the_module_for_lightning_trains():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl = pytest.importorskip("lightning.pytorch")
    net = ran(block("Lightning"))["Net"]()
    loader = DataLoader(TensorDataset(images(8, size=(3, 32, 32)), torch.arange(8)), 4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **quiet)
    before = [p.detach().clone() for p in net.parameters()]
    trainer.fit(net, loader)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert "gates/target" in trainer.callback_metrics


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_the_trainer_for_transformers_trains(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=5
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "net")
    data = [{"pixel_values": x, "labels": torch.tensor(2)} for x in images(4, size=(3, 32, 32))]
    code = block("transformers").replace("num_train_epochs=20", "num_train_epochs=1, use_cpu=True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trainer = ran(code, name=str(tmp_path / "net"), train=data, test=data)["trainer"]
    assert trainer.state.global_step == 1


# --- diffs ----------------------------------------------------------------------------------------

TIMM = """
def main(args, loader_train, data_config, device):
    model = create_model(
        args.model, num_classes=10)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    train_loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
    train_loss_fn = train_loss_fn.to(device=device)
    for epoch in range(args.epochs):
            train_metrics = train_one_epoch(
                epoch,
                model,
                loader_train,
                optimizer,
                train_loss_fn,
                args,
            )
    return model, train_metrics

def train_one_epoch(
        epoch,
        model,
        loader,
        optimizer,
        loss_fn,
        args,
):
    for batch_idx, (input, target) in enumerate(loader):
        if True:
            output = model(input)
            loss = loss_fn(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
"""

VISION = """
def train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema=None, scaler=None):
    for i, (image, target) in enumerate(data_loader):
        if True:
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

def evaluate(model, criterion, data_loader, device):
    model.eval()
    return criterion(model(next(iter(data_loader))[0]), next(iter(data_loader))[1]).item()

def main(args, data_loader, data_loader_test, device, model_ema=None, scaler=None):
    model = torchvision.models.get_model(
        args.model, num_classes=10)
    criterion = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)
    parameters = utils.set_weight_decay(
        model, args.weight_decay)
    optimizer = torch.optim.SGD(parameters, lr=args.lr)
    for epoch in range(args.epochs):
        train_one_epoch(model, criterion, optimizer, data_loader, device, epoch, args, model_ema, scaler)
        evaluate(model, criterion, data_loader_test, device=device)
    return model, evaluate(model, nn.CrossEntropyLoss(), data_loader_test, device=device)
"""  # noqa: E501


def patched(script, diff):
    """Return a script as a diff changes it; "..." goes on to the next line that the diff names."""
    lines, at = script.splitlines(), 0
    for change in diff.splitlines():
        mark, text = change[:1], change[1:]
        if change == "...":
            continue
        if mark == "+":
            lines.insert(at, text)
            at += 1
            continue
        opening, whole, _ = text.partition("...)")
        at = lines.index(opening, at)
        end = at + 1
        while whole and not lines[end - 1].endswith(")"):  # a call, over several lines
            end += 1
        if mark == "-":
            del lines[at:end]
        else:
            at = end
    return "\n".join(lines)


def arguments(**more):
    import types

    given = {"model": "resnet18", "epochs": 1, "lr": 0.01, "weight_decay": 1e-4, "opt": "sgd"}
    return types.SimpleNamespace(**given, momentum=0.9, label_smoothing=0.1, **more)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["timm", "torchvision"])
def test_the_diffs_of_other_scripts(script):
    import torchvision
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models import create_model
    from timm.optim import create_optimizer_v2, optimizer_kwargs
    from torch import nn

    import dmnn_convert

    title = "timm's train.py and torchvision's references"
    known = {
        **{"create_model": create_model, "create_optimizer_v2": create_optimizer_v2},
        **{"optimizer_kwargs": optimizer_kwargs, "torchvision": torchvision, "nn": nn},
        **{"LabelSmoothingCrossEntropy": LabelSmoothingCrossEntropy, "torch": torch},
    }
    loader = DataLoader(TensorDataset(images(4, size=(3, 64, 64)), torch.arange(4)), 2)
    number, text = {"timm": (0, TIMM), "torchvision": (1, VISION)}[script]
    code = patched(text, block(title, "diff", number))
    main = ran(code, dmnn_convert=dmnn_convert, **known)["main"]
    data = {"input_size": (3, 64, 64)}
    given = (loader, data, "cpu") if script == "timm" else (loader, loader, "cpu")
    model, loss = main(arguments(), *given)
    assert dmnn_convert.gate_parameters(model) and loss > 0
