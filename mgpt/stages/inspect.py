"""mgpt inspect: one tokenised sample by its key: pictures, text, ids trained or not.

mgpt inspect input=tokens key=000000012 output=inspected
mgpt inspect input=tokens key=000000012 vq=scenes_f8 vocabulary=text task=caption output=seen
"""

from __future__ import annotations

from data_pipeline.inspect import Found, InspectConfig, inspect_sample
from mgpt.stages.build import load_vocabulary

MOST_RUNS = 80  # of a task, on the console; the page has all

Config = InspectConfig


def main(cfg: Config) -> None:
    vocabulary = None if cfg.vocabulary is None else load_vocabulary(cfg.vocabulary)
    found, path = inspect_sample(cfg, vocabulary)
    for one in found:
        _print(one)
    print(f"page: {path}", flush=True)


def _print(found: Found) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    sample = found.sample
    console.print(Text(f"{found.raw_shard}/{sample.key} at {found.resolution_px} px", "bold"))
    for name, codes_HW in sample.codes.items():
        console.print(Text(f"  {name}: {codes_HW.shape[1]} x {codes_HW.shape[0]} codes"))
    for name, value in sample.meta.items():
        console.print(Text(f"  {name}: {value}"))
    for reading in found.readings:
        counts = ""
        if reading.tokens is not None:
            counts = f": {reading.tokens:,} tokens, {reading.trained:,} trained"
        words = Text(f"  as {reading.task}{counts}\n    ", "bold")
        for run in reading.runs[:MOST_RUNS]:
            words.append(run.words, "not bold green" if run.trained else "not bold dim")
            words.append(" ")
        if len(reading.runs) > MOST_RUNS:
            words.append("…", "not bold")
        console.print(words)
