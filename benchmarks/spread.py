"""What shards of a measure cost and gain: the histogram of one stream as a whole, and in shards, each in a process.

    python -m benchmarks.spread [--shards 2] [--tokens 20000] [--d-sae 16384]

Processes have one thread each and run side by side. For each it prints wall seconds and the seconds that its processor
computed: on a machine that does other things as well, only the latter compare. Not here: what a measure costs by itself
(`cases.py`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from jsae_core import PairConfig, SAEPair
from jsae_core.checkpoints import Checkpoint
from jsae_core.measures import jacobian_sizes, measure_shard, merge_shards
from jsae_core.mlp import MLP

D_MODEL, D_MLP, K, BATCH = 512, 2048, 32, 2048  # Pythia-70m's

Seconds = tuple[float, float]  # by the clock, and of the processor


def random_pair(d_sae: int) -> SAEPair:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[0] ** 0.5

    mlp = MLP(random(D_MODEL, D_MLP), random(D_MLP, D_MODEL), "gelu", torch.zeros(D_MLP), torch.zeros(D_MODEL))
    shapes = {"_W_enc": (D_MODEL, d_sae), "_b_enc": (d_sae,), "_W_dec": (d_sae, D_MODEL), "_b_dec": (D_MODEL,)}
    saes = {f"{name}{side}": random(*shape) for side in ("", "_out") for name, shape in shapes.items()}
    weights = {f"mlp.{name}": getattr(mlp, name) for name in ("W_in", "b_in", "W_out", "b_out")}
    config = PairConfig("random", 0, D_MODEL, d_sae, K, dtype="float32", mlp_activation="gelu")
    return SAEPair.from_tensors(saes | weights, config)


def inputs(tokens: int) -> list[Tensor]:
    return list(torch.randn(tokens, D_MODEL, generator=torch.Generator().manual_seed(1)).split(BATCH))


def timed(d_sae: int, tokens: int, folder: Path, number: int | None, of: int) -> Seconds:
    """One process: a shard, or (None) what merges them, or the whole where there is one. Making pair and inputs is not
    counted; the tables of the Jacobian are, as every process builds its own."""
    torch.set_num_threads(1)
    pair, stream = random_pair(d_sae), inputs(tokens)
    place = Checkpoint(folder / "histogram.safetensors")

    def measure(checkpoint: Checkpoint | None = None) -> object:
        return jacobian_sizes(pair, stream, checkpoint=checkpoint)

    wall, processor = time.monotonic(), time.process_time()
    if of == 1:
        measure()
    elif number is None:
        merge_shards(measure, place, of)
    else:
        measure_shard(measure, place, number, of)
    return time.monotonic() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--d-sae", type=int, default=16_384)
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(given.shards, spawn) as processes:
        folder = Path(name)

        def started(number: int | None, of: int):
            return processes.submit(timed, given.d_sae, given.tokens, folder, number, of)

        whole = started(0, 1).result()
        shards = [one.result() for one in [started(number, given.shards) for number in range(given.shards)]]
        kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        merged = started(None, given.shards).result()
    print(f"histogram of {given.tokens:,} tokens, d_sae {given.d_sae:,}; wall and processor seconds of one thread")
    print(f"whole            {whole[0]:8.1f} {whole[1]:8.1f}")
    for number, shard in enumerate(shards, start=1):
        print(f"shard {number} of {given.shards}     {shard[0]:8.1f} {shard[1]:8.1f}")
    print(f"merged           {merged[0]:8.1f} {merged[1]:8.1f}")
    both = [max(of) + of_merge for of, of_merge in zip(zip(*shards, strict=True), merged, strict=True)]
    print(f"longest + merged {both[0]:8.1f} {both[1]:8.1f}   ({kept / 1e6:,.0f} MB of partial results)")


if __name__ == "__main__":
    main()
