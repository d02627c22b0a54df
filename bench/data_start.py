"""How long a data set takes to start, and its memory: `python -m bench.data_start [--rows 10000000] [--format jsonl]`.

A file of short rows is written to a temporary folder. A fresh process opens it as a run does (every row checked, exact
repeats left out, dev and held-out split off, ten-gram comparison prepared) and draws the first shuffled prompts;
seconds do not count the imports. Memory is the process's peak, torch included, and `start_mb` what it was before.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

DRAWN = 512  # prompts of the first step

WORKER = """
import json, resource, sys, time
from r1fast.config import DataConfig
from r1fast.data.source import PromptSource
from r1fast.stream import Stream

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before_mb, began, cpu = peak_mb(), time.perf_counter(), time.process_time()
source = PromptSource(DataConfig(source="file", file=sys.argv[1]))
prompts = source.prompts("train")
opened_s, opened_cpu_s = time.perf_counter() - began, time.process_time() - cpu
stream = Stream(prompts, "r1_zero 0")
first = stream.take(0, int(sys.argv[2]))
drawn_s = time.perf_counter() - began - opened_s
far = Stream(prompts, "r1_zero 0").take(3 * len(prompts) + 12345, 1)  # a restart in the fourth epoch
assert len({prompt.id for prompt in first}) == len(first)
result = {"prompts": len(prompts), "opened_s": opened_s, "opened_cpu_s": opened_cpu_s, "drawn_s": drawn_s}
print(json.dumps({**result, "start_mb": before_mb, "peak_mb": peak_mb()}))
"""


def write_rows(path: Path, num_rows: int) -> None:
    """Rows of 61 bytes, every question once."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema([("prompt", pyarrow.string()), ("answer", pyarrow.string())])
        with parquet.ParquetWriter(path, schema) as file:
            for start in range(0, num_rows, 1 << 17):
                numbers = range(start, min(start + (1 << 17), num_rows))
                columns = [[f"what is {n} plus {n % 97} ?" for n in numbers], [str(n + n % 97) for n in numbers]]
                file.write_table(pyarrow.table(columns, schema=schema))
        return
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for n in range(num_rows):
            file.write(f'{{"prompt": "what is {n} plus {n % 97} ?", "answer": "{n + n % 97}"}}\n')


def measure(path: Path) -> dict[str, float]:
    """Open the file in a process of its own."""
    command = [sys.executable, "-c", WORKER, str(path), str(DRAWN)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--format", choices=("jsonl", "jsonl.gz", "parquet"), default="jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{options.format}"
        write_rows(path, options.rows)
        size = {"rows": options.rows, "file_mb": round(path.stat().st_size / 1e6, 1), "cores": os.cpu_count()}
        print(json.dumps({"bench": "data_start", "format": options.format, **size, **measure(path)}))


if __name__ == "__main__":
    main()
