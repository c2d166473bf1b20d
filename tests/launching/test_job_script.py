"""The job's script: restarts and their cap, signals, overtaken and cancelled starts, follow-ups."""

import socket
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from job_script import JobScript


def requeues(calls: list[str]) -> int:
    return sum(call.startswith("requeue") for call in calls)


def test_a_run_that_ends_well_is_complete(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    script.plan("save 10; exit 0")
    outcome = script.start()
    assert outcome.status == 0 and script.state == ["complete", "7", ""]
    (step,) = outcome.calls
    assert "--nodes=2 --ntasks=4 --ntasks-per-node=2" in step
    assert f"--output={script.launch}/logs/1/rank_%4t.log" in step
    assert "export RANK=$SLURM_PROCID" in step and "-m mgpt pretrain --config x" in step


def test_a_lone_rank_is_a_rank_too(tmp_path: Path) -> None:
    """Else the stage would start itself once more, on as many processes as it likes."""
    script = JobScript(tmp_path, ranks=1)
    script.plan("exit 0")
    (step,) = script.start(SLURM_JOB_NUM_NODES="1").calls
    assert "--ntasks=1" in step and "export RANK=$SLURM_PROCID" in step
    assert "LOCAL_WORLD_SIZE=1; exec" in step


def test_a_lost_step_that_looks_well_is_not_complete(tmp_path: Path) -> None:
    """srun says 0 where its nodes were lost and it waited in vain."""
    script = JobScript(tmp_path)
    script.plan("save 3; true", "save 6; exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 2 and requeues(outcome.calls) == 1
    assert script.state[0] == "complete"


def test_an_overtaken_start_leaves_the_books_alone(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    script.plan(f"touch '{script.launch}/starts/2'; echo theirs >'{script.launch}/state'; exit 0")
    outcome = script.start()
    assert outcome.status == 1 and "has overtaken this one" in outcome.log
    assert (script.launch / "state").read_text() == "theirs\n"


def test_starts_that_bring_something_are_not_counted(tmp_path: Path) -> None:
    script = JobScript(tmp_path, restarts=1)
    script.plan(*(f"save {step}; exit 137" for step in range(1, 8)), "exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 8 and requeues(outcome.calls) == 7


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_starts_that_bring_nothing_are_capped(tmp_path: Path, restarts: int) -> None:
    script = JobScript(tmp_path, restarts=restarts)
    script.plan("save 4; exit 1", *["exit 1"] * 9)
    outcome = script.run_to_the_end()
    assert outcome.status == 1
    assert outcome.starts == 1 + (1 + restarts), "the first that brought nothing, and its restarts"
    assert script.state[0] == "failed"
    assert f"{restarts + 1} starts in a row brought nothing (at 4)" in script.state[2]


def test_a_checkpoint_set_aside_as_damaged_is_no_progress(tmp_path: Path) -> None:
    script = JobScript(tmp_path, restarts=1)
    damaged = f"'{script.run}/step_00000009.damaged'"
    script.plan(f"save 2; mkdir -p {damaged}; touch {damaged}/COMPLETE; exit 1", "exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 2 and "from 2\n" in outcome.log
    assert (script.launch / "barren").read_text() == "0 2\n"


def test_a_step_forward_makes_the_count_begin_anew(tmp_path: Path) -> None:
    script = JobScript(tmp_path, restarts=2)
    script.plan("exit 1", "exit 1", "save 2; exit 1", "exit 1", "exit 1", "exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 6


def test_starts_that_a_node_took_along_are_counted_too(tmp_path: Path) -> None:
    """Of those the script sees the beginning alone."""
    script = JobScript(tmp_path, restarts=1)
    script.plan(*["kill -9 $PPID; exit 0"] * 3)
    statuses = [script.start(restart).status for restart in range(3)]
    assert statuses == [-9, -9, 1]
    assert "2 starts in a row brought nothing" in script.state[2]


def test_a_mistake_that_a_person_must_mend_is_not_tried_again(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    write = 'printf "%s\\n%s\\n" DataError "shard 7 is cut short (rank 1)" >"$MGPT_ERROR_FILE"'
    script.plan(f"{write}; exit 2")
    outcome = script.run_to_the_end()
    assert outcome.status == 1 and outcome.starts == 1
    assert script.state == ["failed", "7", "shard 7 is cut short (rank 1)"]


def test_the_machine_s_own_errors_are_tried_again(tmp_path: Path) -> None:
    script = JobScript(tmp_path, restarts=1)
    write = 'printf "%s\\n%s\\n" MachineError "no route to vn2" >"$MGPT_ERROR_FILE"'
    script.plan(f"{write}; exit 2", "save 1; exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 2


def test_an_answer_is_no_reason_to_try_again(tmp_path: Path) -> None:
    script = JobScript(tmp_path, kind="alone")
    script.plan("exit 1")
    outcome = script.run_to_the_end()
    assert outcome.status == 1 and outcome.starts == 1 and script.state[0] == "failed"


def test_the_signal_goes_to_the_ranks_and_the_job_into_the_queue(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    step = f"'{script.run}/step_00000005'"
    saves = f'trap "mkdir -p {step}; touch {step}/COMPLETE; exit 75" USR1'
    script.plan(f"{saves}; kill -USR1 $PPID; for i in $(seq 200); do sleep 0.1; done", "exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 2 and requeues(outcome.calls) == 1
    assert (script.launch / "barren").read_text() == "0 5\n"


def test_an_orderly_stop_by_slurm_itself_is_followed_by_a_requeue(tmp_path: Path) -> None:
    """Preemption: the ranks get SIGTERM, the script nothing."""
    script = JobScript(tmp_path)
    script.plan("save 3; exit 75", "exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and requeues(outcome.calls) == 1


@pytest.mark.parametrize("case", ["later start", "cancelled by mgpt", "cancelled", "restarted"])
def test_what_is_overtaken_or_cancelled_does_not_come_back(tmp_path: Path, case: str) -> None:
    script = JobScript(tmp_path)
    late = {
        "later start": f"touch '{script.launch}/starts/2'; ",
        "cancelled by mgpt": f"touch '{script.launch}/cancelled'; ",
        "cancelled": "echo 'JobId=7 JobState=CANCELLED Restarts=0 ' >$T/job; ",
        "restarted": "echo 'JobId=7 JobState=RUNNING Restarts=1 ' >$T/job; ",
    }[case]
    script.plan(f"{late}exit 75")
    outcome = script.start()
    assert outcome.status == 1 and requeues(outcome.calls) == 0
    assert "has overtaken this one" in outcome.log


def test_where_nothing_is_requeued_a_follow_up_takes_over_with_what_waits(tmp_path: Path) -> None:
    script = JobScript(tmp_path, requeue=False)
    waiting = "\n".join(
        ["8 afterok:7(unfulfilled)", "9 afterok:77(unfulfilled)",
         "10 afterok:3(unfulfilled),afterany:7(unfulfilled)", "99 afterany:7(unfulfilled)"]
    )  # fmt: skip
    (script.notes / "waiting").write_text(f"{waiting}\n")
    script.plan("save 3; exit 75")
    outcome = script.start()
    assert outcome.status == 0 and requeues(outcome.calls) == 0
    assert f"sbatch --parsable --dependency=afterany:7 {script.file}" in outcome.calls
    updates = [call for call in outcome.calls if call.startswith("update")]
    assert updates == [
        "update update JobId=8 Dependency=afterok:99",
        "update update JobId=10 Dependency=afterok:3,afterany:99",
    ]
    assert (script.launch / "job").read_text() == "99\n"
    assert script.state == ["waiting", "7", "job 99 follows"]


def test_where_slurm_refuses_to_requeue_a_follow_up_takes_over(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    (script.notes / "no_requeue").touch()
    script.plan("save 3; exit 75")
    outcome = script.start()
    assert outcome.status == 0 and (script.launch / "job").read_text() == "99\n"


def test_an_element_of_an_array_keeps_its_own_books(tmp_path: Path) -> None:
    script = JobScript(tmp_path, kind="shared", requeue=False)
    (script.notes / "waiting").write_text("8 afterany:5_*(unfulfilled)\n")
    (script.launch / "job").write_text("5\n")
    script.plan("exit 137")
    element = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    outcome = script.start(**element)
    assert outcome.status == 0 and not (script.launch / "starts").exists()
    assert (script.launch / "element_3" / "job").read_text() == "99\n"
    assert (script.launch / "job").read_text() == "5\n"
    follow_up = f"sbatch --parsable --dependency=afterany:5_3 --array=3 {script.file}"
    assert follow_up in outcome.calls
    assert "update update JobId=8 Dependency=afterany:5:99" in outcome.calls


def test_a_second_job_in_the_folder_of_a_live_one_ends_at_once(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    (script.launch / "job").write_text("6\n")
    (script.notes / "live").write_text("6 main RUNNING\n")
    script.plan("exit 0")
    outcome = script.start()
    assert outcome.status == 1 and outcome.starts == 0 and outcome.calls == []
    assert "job 6 already works in" in outcome.log
    (script.notes / "live").write_text("")
    assert script.start().status == 0, "one that is over is no hindrance"
    assert (script.launch / "job").read_text() == "7\n"


def test_bad_nodes_are_left_out_of_the_next_start(tmp_path: Path) -> None:
    script = JobScript(tmp_path, doctor=True)
    doctor = script.launch / "doctor"
    bad = f"mkdir -p '{doctor}'; echo vn2 >'{doctor}/bad_nodes'; exit 3"
    script.plan(bad, "exit 0", "save 9; exit 0")
    outcome = script.run_to_the_end()
    assert outcome.status == 0 and outcome.starts == 2
    assert "update update JobId=7 ExcNodeList=vn2" in outcome.calls
    assert "mgpt doctor output=" in outcome.calls[0]


def test_a_busy_port_is_passed_over(tmp_path: Path) -> None:
    script = JobScript(tmp_path)
    script.plan('echo $MASTER_ADDR $MASTER_PORT >"$T/port"; exit 0')
    usual = 20_000 + (7 * 16 + 1) % 10_000
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", usual))
        taken.listen(8)
        script.start()
    host, port = (script.notes / "port").read_text().split()
    assert host == "127.0.0.1" and int(port) > usual


def test_variables_of_the_shell_that_submitted_do_not_reach_the_ranks(tmp_path: Path) -> None:
    script = JobScript(tmp_path, env={"MY_FLAG": "it's on"})
    script.plan('echo "${RANK-none} ${MGPT_PARENT_PID-none} $MY_FLAG" >"$T/seen"; exit 0')
    script.start(RANK="3", MGPT_PARENT_PID="1")
    assert (script.notes / "seen").read_text() == "none none it's on\n"


def test_ranks_get_the_scripts_environment_at_sites_that_export_none(tmp_path: Path) -> None:
    """sbatch --export=NONE leaves SLURM_EXPORT_ENV=NONE to the script, and srun obeys it."""
    script = JobScript(tmp_path)
    script.plan('echo "export=${SLURM_EXPORT_ENV-all}" >>"$T/calls"; exit 0')
    assert "export=all" in script.start(SLURM_EXPORT_ENV="NONE").calls
