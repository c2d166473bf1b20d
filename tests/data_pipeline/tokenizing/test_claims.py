"""Claims: one holder at a time, freed when it is gone, and lost when somebody took over."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.tokenizing.claims import ClaimLost, Claims
from mgpt.errors import MachineError
from mgpt.files import storage
from mgpt.files.storage import Location, locate


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return tmp_path / "work"
    request.getfixturevalue("s3")
    return locate("s3://corpus/work")


def rewrite(path: Path, **changes) -> None:
    stamp = path.stat().st_mtime
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    os.utime(path, (stamp, stamp))


def age(folder: Path, seconds: float) -> None:
    """As if nothing had been written there for so long."""
    then = time.time() - seconds
    for path in folder.iterdir():
        os.utime(path, (then, then))


def names(folder: Location) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_holder(folder):
    with Claims(folder) as ours, Claims(folder) as theirs:
        claim = ours.take("u")
        assert claim is not None and theirs.take("u") is None
        claim.check()
        claim.release()
        taken = theirs.take("u")
        assert taken is not None
        with pytest.raises(ClaimLost):
            claim.check()
    assert names(folder) == []


def test_units_whose_names_begin_alike_are_apart(folder):
    with Claims(folder) as claims, Claims(folder) as others:
        assert claims.take("a.1") and others.take("a") and claims.take("a.1.1")
        assert others.take("a.1") is None


def test_dead_process_on_this_machine_frees_at_once(folder):
    code = (
        "import os, sys; from mgpt.files.storage import locate\n"
        "from data_pipeline.tokenizing.claims import Claims\n"
        "claims = Claims(locate(sys.argv[1])).__enter__(); claims.take('u'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=60)
    assert "u.0" in names(folder)
    with Claims(folder) as claims:
        taken = claims.take("u")
        assert taken is not None and taken.number == 1


def test_reused_process_number_is_not_the_holder(tmp_path):
    with Claims(tmp_path) as holder, Claims(tmp_path) as other:
        holder.take("u")
        rewrite(tmp_path / "u.0", started="1")
        assert other.take("u") is not None


@pytest.mark.parametrize("away", [{"host": "elsewhere"}, {"boot": "earlier"}, {"pids": "pid:[1]"}])
def test_another_machine_is_freed_by_silence_only(tmp_path, away):
    with Claims(tmp_path) as holder, Claims(tmp_path, lease_s=60) as other:
        claim = holder.take("u")
        rewrite(tmp_path / "u.0", **away, pid=2**22 + 1, started="1")
        age(tmp_path, 50)
        assert other.take("u") is None
        age(tmp_path, 70)
        assert other.take("u") is not None
        with pytest.raises(ClaimLost):
            claim.check()


def test_silence_frees_on_an_object_store(s3):
    folder = locate("s3://corpus/work")
    lease_s = 4.0  # its stamps are whole seconds
    with Claims(folder, heartbeat_s=100) as silent, Claims(folder, lease_s, 100) as other:
        silent._identity = silent._identity.replace(b'"host"', b'"elsewhere"')
        claim = silent.take("u")
        assert other.take("u") is None
        silent._renew()
        time.sleep(lease_s + 1.1)
        assert other.take("u") is not None
        with pytest.raises(ClaimLost):
            claim.check()


def test_heartbeat_keeps_a_claim(tmp_path):
    with Claims(tmp_path, heartbeat_s=0.05) as holder, Claims(tmp_path, lease_s=5) as other:
        holder.take("u")
        rewrite(tmp_path / "u.0", host="elsewhere")
        age(tmp_path, 100)
        deadline = time.monotonic() + 5
        while time.time() - max(path.stat().st_mtime for path in tmp_path.iterdir()) > 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert other.take("u") is None


def test_overtaken_holder_does_not_release_its_successor(tmp_path):
    with Claims(tmp_path) as slow, Claims(tmp_path) as quick, Claims(tmp_path) as third:
        claim = slow.take("u")
        rewrite(tmp_path / "u.0", host="elsewhere")
        age(tmp_path, 1000)
        assert quick.take("u") is not None
        claim.release()
        assert third.take("u") is None


def test_overtaken_holder_stays_so_when_its_successor_is_done(tmp_path):
    with Claims(tmp_path) as slow, Claims(tmp_path) as quick, Claims(tmp_path) as third:
        claim = slow.take("u")
        identity = (tmp_path / "u.0").read_bytes()
        rewrite(tmp_path / "u.0", host="elsewhere")
        age(tmp_path, 1000)
        successor = quick.take("u")
        (tmp_path / "u.0").write_bytes(identity)
        successor.release()
        with pytest.raises(ClaimLost):
            claim.check()
        assert third.take("u") is not None


def test_damaged_claim_is_freed_by_silence_only(tmp_path):
    with Claims(tmp_path) as claims:
        (tmp_path / "u.3").write_text("{")
        assert claims.take("u") is None
        age(tmp_path, 100)
        assert claims.take("u").number == 4


def test_a_folder_that_went_with_another_job_is_made_again(tmp_path):
    with Claims(tmp_path / "work") as claims:
        claim = claims.take("u")
        for path in (tmp_path / "work").iterdir():
            path.unlink()
        (tmp_path / "work").rmdir()
        with pytest.raises(ClaimLost):
            claim.check()
        assert claims.take("u") is None  # makes the folder
        claims.take("u").check()


def test_a_folder_that_goes_while_a_worker_joins(tmp_path, monkeypatch):
    """Another ends the job between the two creations that try the store."""
    created = []

    def create_and_lose(path: Path, data: bytes) -> bool:
        ours = storage.create(path, data)
        created.append(path)
        if len(created) == 1:
            storage.remove_tree(tmp_path / "work")
            path.parent.mkdir()
        return ours

    monkeypatch.setattr("data_pipeline.tokenizing.claims.create", create_and_lose)
    with Claims(tmp_path / "work") as claims:
        assert claims.take("u")
    assert len(created) > 2


def test_a_store_that_overwrites_what_it_should_create_is_refused(s3, monkeypatch):
    inner = s3._app

    def forgetful(environ, start_response):
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return inner(environ, start_response)

    monkeypatch.setattr(s3, "_app", forgetful)
    with pytest.raises(MachineError, match="If-None-Match"), Claims(locate("s3://corpus/work")):
        pass
