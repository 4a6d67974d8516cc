"""InstaHide under DistributedDataParallel: each process encodes its own shard."""

import os
import tempfile

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from instahide_fl import Config, EncoderConfig, InstaHideEncoder, soft_cross_entropy
from instahide_fl.data.datasets import load_dataset
from instahide_fl.rng import operating_system_stream

PROCESSES = 2


def train(rank, meeting):
    """Run one of the processes."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES
    )
    digits = load_dataset(Config().data).train
    shard = digits.subset(torch.arange(rank, len(digits), PROCESSES))
    encoder = InstaHideEncoder(EncoderConfig(scope="inside", num_mixed=4), None)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(784, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    rng = operating_system_stream()
    for index in torch.randperm(len(shard))[:640].split(32):
        batch, _ = encoder.encode(index, shard, rng)
        loss = soft_cross_entropy(model(batch.images), batch.soft_targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if rank == 0:
        print(f"{PROCESSES} processes, loss {loss.item():.2f}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train, args=(f"{folder}/meeting",), nprocs=PROCESSES)
