"""The layer that makes the logits is found, wherever it was registered."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from dmnn_convert.categories import categories_from
from dmnn_convert.dryrun import classifier_of
from dmnn_convert.finetune.source import classes_of, replace_classifier


class Auxiliary(nn.Module):
    """Its second head is registered last, and runs in training only."""

    def __init__(self, convolution=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Conv2d(8, 5, 1) if convolution else nn.Linear(8, 5)
        self.convolution = convolution
        self.auxiliary = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        if self.convolution:
            return self.head(x).relu().mean((2, 3))
        x = x.mean((2, 3))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


class FixedSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 28 * 28, 4)
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.unused = nn.Linear(3, 9)

    def forward(self, x):
        return self.head(self.stem(x).flatten(1))


class Branching(nn.Module):
    """Cannot run on the meta device, which has no values to branch on."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)) if x.sum() > -1 else x)


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (Auxiliary, "head"),
        (lambda: Auxiliary(convolution=True), "head"),
        (FixedSize, "head"),
        (Branching, "head"),
        (lambda: models.googlenet(num_classes=7, init_weights=False), "fc"),
        (lambda: models.squeezenet1_1(num_classes=7), "classifier.1"),
        (lambda: models.resnet18(num_classes=7), "fc"),
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=7), "classifier"),
        (lambda: timm.create_model("convnext_atto", num_classes=7), "head.fc"),
    ],
)
def test_the_layer_that_makes_the_logits_is_found(build, path):
    model = build().train().requires_grad_(False)
    found = classifier_of(model)
    assert (found.path, found.layer) == (path, model.get_submodule(path))
    assert model.training
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_a_new_classifier_takes_its_place():
    model = Auxiliary()
    replace_classifier(model, 3)
    assert classes_of(model) == 3
    assert model.eval()(torch.zeros(2, 3, 9, 9)).shape == (2, 3)
    assert model.auxiliary.out_features == 5


def test_clusters_are_of_the_rows_that_make_the_logits():
    model = Auxiliary()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(8)[[0, 1, 0, 1, 0]])
        model.auxiliary.weight.copy_(torch.eye(8)[[0, 0, 0, 1, 1]])
    found = categories_from("clusters:2", num_classes=5, classifier=model)
    assert found.labels == (0, 1, 0, 1, 0)


def test_a_model_without_such_a_layer_has_none():
    assert classifier_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())) is None
    assert classifier_of(Auxiliary(), classes=6) is None
