"""Claims: one holder at a time, freed when it is gone, and lost when somebody took over."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.claims import ClaimLost, Claims


def rewrite(path: Path, **changes) -> None:
    stamp = path.stat().st_mtime
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    os.utime(path, (stamp, stamp))


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_one_holder(tmp_path):
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        claim = ours.take("u")
        assert claim is not None and theirs.take("u") is None
        claim.check()
        claim.release()
        taken = theirs.take("u")
        assert taken is not None
        with pytest.raises(ClaimLost):
            claim.check()
    assert list(tmp_path.iterdir()) == []


def test_dead_process_on_this_machine_frees_at_once(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from data_pipeline.claims import Claims\n"
        "claims = Claims(Path(sys.argv[1])).__enter__(); claims.take('u'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=20)
    assert (tmp_path / "u.0").exists()
    with Claims(tmp_path) as claims:
        assert claims.take("u") is not None


def test_reused_process_number_is_not_the_holder(tmp_path):
    with Claims(tmp_path) as holder, Claims(tmp_path) as other:
        holder.take("u")
        assert other.take("u") is None
        rewrite(tmp_path / "u.0", started="1")
        assert other.take("u") is not None


@pytest.mark.parametrize("away", [{"host": "elsewhere"}, {"boot": "earlier"}, {"pids": "pid:[1]"}])
def test_another_machine_is_freed_by_silence_only(tmp_path, away):
    with Claims(tmp_path) as holder, Claims(tmp_path, lease_s=60) as other:
        claim = holder.take("u")
        rewrite(tmp_path / "u.0", **away, pid=2**22 + 1, started="1")
        age(tmp_path / "u.0", 50)
        assert other.take("u") is None
        age(tmp_path / "u.0", 70)
        assert other.take("u") is not None
        with pytest.raises(ClaimLost):
            claim.check()


def test_heartbeat_keeps_a_claim(tmp_path):
    with Claims(tmp_path, heartbeat_s=0.05) as holder, Claims(tmp_path, lease_s=5) as other:
        holder.take("u")
        age(tmp_path / "u.0", 100)
        deadline = time.monotonic() + 5
        while time.time() - (tmp_path / "u.0").stat().st_mtime > 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert other.take("u") is None


def test_overtaken_holder_does_not_release_its_successor(tmp_path):
    with Claims(tmp_path) as slow, Claims(tmp_path) as quick, Claims(tmp_path) as third:
        claim = slow.take("u")
        age(tmp_path / "u.0", 1000)
        rewrite(tmp_path / "u.0", host="elsewhere")
        assert quick.take("u") is not None
        claim.release()
        assert third.take("u") is None


def test_damaged_claim_is_freed_by_silence_only(tmp_path):
    with Claims(tmp_path) as claims:
        (tmp_path / "u.3").write_text("{")
        assert claims.take("u") is None
        age(tmp_path / "u.3", 100)
        assert claims.take("u").number == 4
