"""Flower's own FedAvg on its own simulation, with clients that send the model back.

A program of its own, because the memory of its process is measured:
`python -m benchmarks.stock_fedavg CLIENTS ROUNDS` prints the seconds of each round.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from instahide_fl.config import ModelConfig
from instahide_fl.models.registry import build_model

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the arrays that came."""
    arrays = ArrayRecord(message.content.array_records["arrays"].to_numpy_ndarrays())
    metrics = MetricRecord({"num-examples": 50})
    content = RecordDict({"arrays": arrays, "metrics": metrics})
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Average for some rounds and print how long each took."""
    rounds, model = int(sys.argv[2]), ModelConfig(name="resnet-18")
    arrays = ArrayRecord(build_model(model, (1, 28, 28), 10, 0).state_dict())
    times = [time.perf_counter()]
    FedAvg(fraction_evaluate=0.0).start(
        grid,
        arrays,
        num_rounds=rounds,
        evaluate_fn=lambda *_: times.append(time.perf_counter()),
    )
    # The first evaluation is of the initial parameters.
    pairs = itertools.pairwise(times[1:])
    print(json.dumps([end - start for start, end in pairs]), flush=True)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, int(sys.argv[1]), backend_config=resources)
