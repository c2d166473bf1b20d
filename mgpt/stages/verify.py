"""mgpt verify: proof that a tokenised output holds every sample of its raw shards, once.

    mgpt verify input=tokens
    mgpt verify input=tokens raw=raw vq=scenes_f8

The last line is one JSON object. The exit status is 0 where all is proven, 1 where something is
not, 2 where the input is no tokenised output.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.verify import VerifyConfig, verify
from mgpt.tracking.tracker import Tracker, TrackingConfig

NOT_PROVEN_STATUS = 1
MAX_PROBLEMS = 20  # in the JSON line; `num_problems` counts them all

Config = VerifyConfig


def main(cfg: Config) -> None:
    unrecorded = TrackingConfig(mode="disabled")
    with Tracker(unrecorded, Path(cfg.input), "verify", record=False) as tracker:
        result = verify(cfg, tracker)
    problems = result.pop("problems")
    line = {**result, "num_problems": len(problems), "problems": problems[:MAX_PROBLEMS]}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    if not result["ok"]:
        raise SystemExit(NOT_PROVEN_STATUS)
