"""Fine-tune a converted network with Lightning Fabric, in one process or in several.

    python examples/fabric_loop.py
    python examples/fabric_loop.py --devices 2                    # two GPUs
    python examples/fabric_loop.py --devices 2 --accelerator cpu  # two processes without GPUs

The data are those of digits.py. dmnn_convert knows nothing about Fabric: `record_paths` looks into
whatever `setup` returns, and the loss sums FLOPs over all processes by itself. Every parameter
gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`.
"""

from __future__ import annotations

from itertools import islice

import torch
from digits import loaders, parser, summary, trained_source
from lightning_fabric import Fabric
from loop import repeated
from torch.utils.data import DataLoader
from tqdm import tqdm

import dmnn_convert


def finetune(
    fabric: Fabric,
    model: torch.nn.Module,
    loss: dmnn_convert.DMNNLoss,
    training: DataLoader,
    *,
    epochs: int,
    max_steps: int | None,
) -> None:
    """Train in place; each process takes batches of its own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)
    training = fabric.setup_dataloaders(training)  # shorter, by the number of processes
    steps = epochs * len(training) if max_steps is None else max_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps, pct_start=0.1)
    model, optimizer = fabric.setup(model, optimizer)
    model.train()
    batches = islice(repeated(training), steps)
    bar = tqdm(batches, "fine-tune", steps, leave=False, disable=not fabric.is_global_zero)
    for images, labels in bar:
        with dmnn_convert.record_paths(model) as paths:
            logits = model(images)
        total = loss(logits, labels, paths)
        optimizer.zero_grad()
        fabric.backward(total)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{total.item():.3f}")


def main() -> None:
    """Train a small ResNet, convert it, fine-tune it with Fabric."""
    options_of = parser(__doc__)
    options_of.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    options_of.add_argument("--devices", type=int, default=1, help="number of processes")
    options_of.add_argument("--output", help="folder to save the dynamic network to")
    options = options_of.parse_args()
    fabric = Fabric(accelerator=options.accelerator, devices=options.devices)
    fabric.launch()  # `fabric run` would do this itself, and would not let a script do it again
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    # Every process trains and converts the same source, to be brief.
    fabric.seed_everything(options.seed, verbose=False)
    training, test = loaders(options.seed)
    length = {"epochs": options.epochs, "max_steps": options.max_steps}
    first = fabric.is_global_zero
    source = trained_source(training, **length, progress=first)
    model, table = dmnn_convert.dynamize(source, N=2, input_size=(3, 8, 8))
    dmnn_convert.calibrate(model, training)

    # Gates draw other noise in every process. Not by seed_everything: Fabric also shuffles by its
    # seed, and the processes would no longer share out the images.
    torch.manual_seed(options.seed + fabric.global_rank)
    loss = dmnn_convert.DMNNLoss(table, target=options.target)
    finetune(fabric, model, loss, training, **length)

    images = DataLoader(dmnn_convert.shard(test.dataset), 512)  # each image in one process
    found = dmnn_convert.evaluate(model, table, images, progress=first)
    fabric.print(f"processes: {fabric.world_size}; {summary(found, options.target)}")
    if options.output and first:
        dmnn_convert.save(model, options.output)


if __name__ == "__main__":
    main()
