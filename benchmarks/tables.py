"""Write docs/benchmarks.md from the result files: `python -m benchmarks.tables`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.reporting import RESULTS, format_value
from instahide_fl.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Measured speed and memory

Written by `make bench` from `benchmarks/results/`. All variants of a comparison ran in
one session on one machine: the ratios say more than the seconds, which are that
machine's.
"""
SECTIONS = {
    "engine-overhead": (
        "What the engine costs",
        "Our apps on stock Flower simulation and on engine `ray`, with clients that "
        "take no training step: what remains is sending, starting clients and adding "
        "up. Median of a run's rounds without the first. Engine `ray` ran before and "
        "after stock Flower; the mean of its two runs is shown.",
    ),
    "server-memory": (
        "Memory of the server",
        "ResNet-18 (45 MB), 100 clients without training. Peak memory of the server's "
        "process (a shared page is divided among the processes that share it), and of "
        "all processes of the run.",
    ),
    "reference-workload": (
        "The reference workload of federated simulators",
        "1000 clients with 50 random images of CIFAR-10's shape, 50 a round, batches "
        "of 10, one epoch, a network of 1,626,442 parameters. InstaHide: cross, k = 4.",
    ),
    "local-training": (
        "Local training",
        "`python -m benchmarks.local_training`: five steps on batches of 10 images of "
        "3x32x32, beside a plain PyTorch loop of the same network in channels-last "
        "layout on images that are there already. CPU time of one process and one "
        "thread. `allocator as it is`: before the process is told to keep freed memory "
        "(`training/allocator.py`), which engines inline and ray do and the other rows "
        "have.",
    ),
    "gpu": (
        "On a GPU",
        "`sh benchmarks/gpu.sh`: resnet-9 with GroupNorm, sign-invariant, InstaHide "
        "cross, k = 4, batches of 100. Clients side by side are processes that share "
        "the GPU. `vectorised` is the published procedure with float images and random "
        "numbers on the GPU. Ratios are to the first row of each comparison.",
    ),
    "evaluation": (
        "Evaluation",
        "The 10,000 test images of the reference workload. Engine `inline` evaluates "
        "on one thread of the server, engine `ray` on its workers; the figures are the "
        "same bits. Median of a run's evaluations without the first.",
    ),
    "encoder": (
        "The encoder",
        "InstaHide, cross, 20,000 images of 3x32x32, and a pool of 20,000 images. "
        "`straightforward` is the published procedure on the whole set at once, with a "
        "loop over images for the coefficients; the others encode 1,000 images at a "
        "time.",
    ),
    "attacks": (
        "Inverting Gradients",
        "Updates of one image of 3x32x32 each, a network of three convolutions "
        "(113,738 parameters), labels known, 500 steps, one core. `published` is the "
        "paper's algorithm, line by line. Median of three runs, taken in turn.",
    ),
    "pool-build": (
        "Building a pool",
        "The whole command `instahide-fl pool build` with its defaults. Peak memory is "
        "the sum over all its processes; a shared page counts once for each of them. "
        "The last row has the same images five times, under different names.",
    ),
    "decoding": (
        "Reading photographs",
        "`python -m benchmarks.decoding FOLDER`, 1,000 photographs of ImageNet "
        "(shorter side 192 pixels at most), each cut to its middle square and resized "
        "to 64x64. Torchvision: `ImageFolder` and `DataLoader`. Ours looks at every "
        "header first, to decide about channels and value range for all pictures "
        "alike. A data set is decoded once; every later use maps the cache.",
    ),
    "large-data": (
        "Data sets that do not fit into memory",
        "`python -m benchmarks.large_data`: 100,000 PNG files of 3x32x32 (a fifth is "
        "the test part), and two rounds of 10 clients that train an mlp on InstaHide "
        "encodings of all images. Memory is the peak without mapped files: the system "
        "takes back the pages of the decoded images when it needs them.",
    ),
    "photographs": (
        "Photographs of 224 pixels",
        "`python -m benchmarks.photographs FOLDER`, photographs of ImageNet (a fifth "
        "for tests): a pool of 224-pixel patches, then three rounds of 2 clients with "
        "batches of 4, resnet-18 with GroupNorm, InstaHide cross, k = 4, and one "
        "evaluation. Memory is the peak without mapped files; the decoded photographs "
        "and the pool are mapped.",
    ),
    "worker-memory": (
        "Memory of further workers",
        "A pool of 1,281,167 images of 3x32x32 (3.9 GB), mapped by all workers. Peak "
        "memory of all processes of the run, shared pages counted once.",
    ),
    "deployment": (
        "A deployed round",
        "`python -m benchmarks.deployment`: TLS, node authentication and three clients "
        "on loopback. Seconds of a round (median, shortest, longest) and the parts of "
        "a client's time; the rest of a round is Flower's waiting and polling.",
    ),
    "soak": (
        "A deployment for half an hour",
        "`python -m benchmarks.soak --minutes 30`. Memory and open file descriptors "
        "of each process, and by which share they grew: the first five minutes are "
        "left out, and the last third of the remaining time is compared with its first "
        "third.",
    ),
    "fault-campaign": (
        "A deployment that is killed again and again",
        "`python -m benchmarks.fault_campaign --kills 30`: SIGKILL at random moments.",
    ),
}
COLUMNS = {
    "soak": [
        "process",
        "rss_mib",
        "rss_mib_growth",
        "pss_mib",
        "pss_mib_growth",
        "fds",
        "fds_growth",
    ]
}
SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "encoder": lambda result: (
        f"Seconds until the first image is encoded: "
        f"{format_value(result['first_use_seconds'])}."
    ),
    "local-training": lambda result: (
        f"Part of a FedSGD round (engine inline, 10 clients with 10 images each, "
        f"k = 4) that is not forward and backward pass: "
        f"{_shares(result['fedsgd_overhead'])}."
    ),
    "photographs": lambda result: (
        f"Encoding at 224 pixels, on one core: {format_value(result['encoder'])} (as "
        f"many times as fast as the procedure named)."
    ),
    "large-data": lambda result: (
        f"Microseconds to read, check and decode an image: "
        f"{format_value(result['microseconds_an_image'])}."
    ),
    "fault-campaign": lambda result: (
        f"{result['kills']} kills in {result['attempts']} attempts and "
        f"{result['minutes']:.0f} minutes. All {result['rounds']} rounds are in "
        f"metrics.jsonl once, with each client counted or named: "
        f"{'yes' if result['every_round_accounted_for'] else 'no'}; "
        f"{result['rounds_without_all_clients']} lacked a client. Longest time without "
        f"a new round or attempt: {result['longest_seconds_without_progress']:.0f} s. "
        f"Accuracy {result['accuracy']:.1%}; the same apps on the same data without a "
        f"fault: {result['accuracy_undisturbed']:.1%}."
    ),
}


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def section(result: Mapping[str, Any]) -> str:
    """Return one result as Markdown."""
    title, text = SECTIONS[result["name"]]
    columns = COLUMNS.get(result["name"], list(result["rows"][0]))
    rows = [{name: row[name] for name in columns} for row in result["rows"]]
    lines = [f"## {title}", "", text, ""]
    lines += [_line(list(rows[0])), _line(["---"] * len(rows[0]))]
    lines += [_line([format_value(value) for value in row.values()]) for row in rows]
    if sentence := SENTENCES.get(result["name"]):
        lines += ["", sentence(result)]
    if note := result.get("note"):
        lines += ["", note]
    machine, versions = result["machine"], result["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "flwr", "ray"))
    lines += [
        "",
        f"{machine['cpus']} cores ({machine['processor']}), {machine['memory_gib']} "
        f"GiB, GPU: {machine['gpu'] or 'none'}; {used}.",
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write the page."""
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in RESULTS.glob("*.json")
    }
    parts = [section(results[name]) for name in SECTIONS if name in results]
    write_text(PAGE, "\n\n".join([HEAD.strip(), *parts]) + "\n")


if __name__ == "__main__":
    main()
