"""Fine-tune a converted network with Hugging Face Accelerate, in one process or in several.

    python examples/accelerate_loop.py
    accelerate launch --num_processes 2 examples/accelerate_loop.py       # two GPUs
    torchrun --standalone --nproc-per-node 2 examples/accelerate_loop.py  # no GPUs

(`accelerate launch --cpu` starts one process, whatever --num_processes says, unless it has MPI.)

The data are those of digits.py. dmnn_convert knows nothing about Accelerate: `record_paths` looks
into whatever `prepare` returns, and the loss sums FLOPs over all processes by itself. Every
parameter gets a gradient, so DistributedDataParallel needs no `find_unused_parameters`.
"""

from __future__ import annotations

from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import loaders, parser, summary, trained_source
from loop import repeated
from torch.utils.data import DataLoader
from tqdm import tqdm

import dmnn_convert


def finetune(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loss: dmnn_convert.DMNNLoss,
    training: DataLoader,
    *,
    epochs: int,
    max_steps: int | None,
) -> None:
    """Train in place; each process takes batches of its own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4, nesterov=True)
    model, optimizer, training = accelerator.prepare(model, optimizer, training)
    # A prepared loader is shorter, by the number of processes. The schedule is not prepared: it
    # would take that many steps at a time, while `steps` already counts those of one process.
    steps = epochs * len(training) if max_steps is None else max_steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps, pct_start=0.1)
    model.train()
    batches = islice(repeated(training), steps)
    quiet = not accelerator.is_main_process
    bar = tqdm(batches, "fine-tune", steps, leave=False, disable=quiet)
    for images, labels in bar:
        with dmnn_convert.record_paths(model) as paths:
            logits = model(images)
        total = loss(logits, labels, paths)
        optimizer.zero_grad()
        accelerator.backward(total)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{total.item():.3f}")


def main() -> None:
    """Train a small ResNet, convert it, fine-tune it with Accelerate."""
    options_of = parser(__doc__)
    options_of.add_argument("--output", help="folder to save the dynamic network to")
    options = options_of.parse_args()
    # Without cpu=True, processes on a machine without GPUs would not find each other.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.set_num_threads(1)  # images of 8×8 pixels are too small to share out
    set_seed(options.seed)  # every process trains and converts the same source, to be brief
    training, test = loaders(options.seed)
    length = {"epochs": options.epochs, "max_steps": options.max_steps}
    first = accelerator.is_main_process
    source = trained_source(training, **length, progress=first)
    model, table = dmnn_convert.dynamize(source, N=2, input_size=(3, 8, 8))
    dmnn_convert.calibrate(model, training)

    set_seed(options.seed, device_specific=True)  # gates draw other noise in every process
    loss = dmnn_convert.DMNNLoss(table, target=options.target)
    finetune(accelerator, model, loss, training, **length)

    images = DataLoader(dmnn_convert.shard(test.dataset), 512)  # each image in one process
    found = dmnn_convert.evaluate(model, table, images, progress=first)
    accelerator.print(f"processes: {accelerator.num_processes}; {summary(found, options.target)}")
    if options.output and first:
        dmnn_convert.save(model, options.output)
    accelerator.end_training()


if __name__ == "__main__":
    main()
