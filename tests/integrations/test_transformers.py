"""Dynamic training by the Trainer of transformers, of one of its own networks."""

import warnings

import pytest
import torch
from small_nets import NETS, images
from torch.utils.data import Dataset

from dmnn_convert import (
    ConversionError,
    DMNNLoss,
    GateSchedule,
    dynamize,
    evaluate,
    force_gates,
    gate_parameters,
    load,
    save,
)

with warnings.catch_warnings():  # transformers' own
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from dmnn_convert.integrations.transformers import DynamicTrainer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

SCHEDULE = GateSchedule(0.4, epochs=2, start=0.8, tau=2.0, tau_end=0.5)


class Images(Dataset):
    def __init__(self, count=32):
        self.images = images(count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": torch.tensor(index % 5)}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[2, 2],
        layer_type="basic",
        num_labels=5,
    )
    return transformers.ResNetForImageClassification(config)


def vit():
    """Its layers hand on what the configuration and the Trainer say about caches."""
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


SOURCES = {"resnet": resnet, "vit": vit, "plain": NETS["basic"]}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_network_is_trained_and_its_gates_are_logged(kind, tmp_path):
    torch.manual_seed(0)
    source = SOURCES[kind]()
    model, table = dynamize(source, 2, input_size=(3, 8, 8), num_categories=2)
    loss = DMNNLoss(table, target=0.4, categories=[0, 0, 1, 1, 1])
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        weight_decay=0.1,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Images()
    trainer = DynamicTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda found: {"shape": found.predictions.shape[-1]},
        gate_loss=loss,
        gate_schedule=SCHEDULE,
        gate_lr=0.5,
    )
    before = [p.detach().clone() for p in gate_parameters(model)]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, gate_parameters(model), strict=True))
    rows = [row for row in trainer.state.log_history if "gates/target" in row]
    assert [row["gates/target"] for row in rows] == pytest.approx(
        [SCHEDULE.at(step / 4).target for step in range(8)]
    )
    assert all(row["gates/category_loss"] > 0 for row in rows)
    assert [row["eval_shape"] for row in trainer.state.log_history if "eval_shape" in row] == [5, 5]
    gates = {id(p) for p in gate_parameters(model)}
    groups = trainer.optimizer.param_groups
    assert [id(g["params"][0]) in gates for g in groups] == [False, False, True]
    assert [g["initial_lr"] for g in groups] == [0.01, 0.01, 0.5]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    batch = torch.utils.data.default_collate([data[i] for i in range(8)])
    assert evaluate(model, table, [batch]).images == 8
    assert list((tmp_path / "run").glob("checkpoint-*/model.safetensors"))


def test_save_pretrained_is_refused_and_save_round_trips(tmp_path):
    torch.manual_seed(0)
    source = resnet().eval()
    model, _ = dynamize(source, 2, split="exact", input_size=(3, 8, 8))
    for part in (model, model.resnet):
        with pytest.raises(ConversionError, match=r"Save with dmnn_convert\.save"):
            part.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    save(model, tmp_path / "ours")
    again = load(tmp_path / "ours", resnet()).model.eval()
    x = images(4)
    with torch.no_grad(), force_gates(model, True), force_gates(again, True):
        torch.testing.assert_close(again(x).logits, model(x).logits)
    source.save_pretrained(tmp_path / "theirs")  # the source may be saved as before
    own = type(source).from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(own(x).logits, source(x).logits)
