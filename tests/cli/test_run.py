"""`gradlab run`: what it prints, what it leaves, and the code that it ends with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradlab.events import event_files, read_events


def weights(run):
    return torch.load(run.last_checkpoint, weights_only=False)["state_dict"]


def steps_of(run, tag):
    """The steps at which a tag was written, a list for each event file."""
    return [[event.step for event in read_events(file) if event.tag == tag] for file in event_files(run.events)]


def tags_of(run):
    return {event.tag for file in event_files(run.events) for event in read_events(file)}


def snapshot_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_prints_its_summary_and_leaves_a_complete_folder(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "trainer.max_epochs=2")
    assert result.exit_code == 0, result.stderr
    run = the_run()
    assert (run.name, run.status()) == ("mine", "done")
    lines = result.stdout.splitlines()
    assert "10 steps, 2 epochs in" in result.stdout
    assert any(line.startswith("net.0.weight") and "8 x 4" in line for line in lines)
    assert lines[-2:] == ["open it in TensorBoard with:", f"  gradlab board {run.id}"]
    assert "epoch 2/2  step 10" in result.stderr
    assert run.experiment.read_bytes() == experiment.read_bytes()
    assert "max_epochs: 2" in run.resolved.read_text()
    assert json.loads(run.record.read_text())["seed"] == 7
    assert run.last_checkpoint.is_file() and run.metrics.is_file() and run.log.is_file()
    ended = run.read_exit()
    assert (ended["code"], ended["reason"], ended["attempt"], ended["signal"]) == (0, "done", 1, None)
    assert ended["steps"] == 10 and "train/loss" in ended["metrics"]


def test_losses_and_gradients_reach_the_event_file(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "trainer.max_epochs=1").exit_code == 0
    tags = tags_of(the_run())
    assert {"train/loss", "run/card", "gradlab/global/weight_grad.norm"} <= tags
    assert any(tag.startswith("gradlab/weight_grad.norm/") for tag in tags)


def test_the_terminal_is_free_of_lightnings_noise(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "trainer.max_epochs=1")
    for noise in ("GPU available", "Tip", "num_workers", "litlogger", "Seed set", "Trainer.fit"):
        assert noise not in result.stdout + result.stderr
    assert "GPU available" in the_run().log.read_text()


def test_two_runs_of_a_seed_have_the_same_weights(gradlab, experiment):
    from gradlab.runs.find import all_runs

    for _ in range(2):
        assert gradlab("run", experiment).exit_code == 0
    first, second = map(weights, all_runs(Path("runs")))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_run_that_is_stopped_and_resumed_ends_like_one_that_was_not(gradlab, experiment, name, code):
    from gradlab.runs.find import find_run

    root = Path("runs")
    assert gradlab("run", experiment).exit_code == 0
    undisturbed = weights(find_run("@1", root))

    stopped = gradlab("run", experiment, f"model.init_args.kill={{{name}: 6}}", "name=stopped")
    assert stopped.exit_code == code, stopped.stderr
    run = find_run("stopped", root)
    assert f"stopped by {name} after step 7; the log is {run.log}" in stopped.stderr
    assert f"go on with: gradlab run --resume {run.id}" in stopped.stderr
    assert run.status() == {75: "resumable", 130: "interrupted"}[code]
    assert run.read_exit()["signal"] == name

    resumed = gradlab("run", "--resume", "stopped")
    assert resumed.exit_code == 0, resumed.stderr
    assert f"run {run.path}, attempt 2, from step 7\n" in resumed.stderr
    assert run.status() == "done"
    assert run.read_exit()["attempt"] == 2
    assert json.loads((run.path / "exit-1.json").read_text())["code"] == code
    assert len(json.loads(run.record.read_text())["resumed"]) == 1
    ended = weights(run)
    assert all(torch.equal(undisturbed[key], ended[key]) for key in undisturbed)
    assert steps_of(run, "gradlab/global/weight_grad.norm") == [list(range(7)), list(range(7, 15))]


def test_a_stop_before_the_first_step_is_resumable(gradlab, experiment, the_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gradlab.launch.run.open_session", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        result = gradlab("run", experiment)
    assert result.exit_code == 75
    assert the_run().status() == "resumable"
    assert the_run().read_exit()["reason"] == "stopped by SIGTERM outside training"
    assert gradlab("run", "--resume", "@1").exit_code == 0


def test_an_interrupt_before_there_is_a_run_is_exit_code_130(gradlab, experiment, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradlab.launch.run.prepare", interrupted)
    assert gradlab("run", experiment).exit_code == 130


def test_a_duplicate_a_typo_a_wrong_type_and_a_wrong_pattern_are_four_problems_at_once(gradlab, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "name: wrong\nname: again\nmodel: mlp\ndata: digits\ntrainer: {max_epochs: three}\nseeds: 1\n"
        "taps:\n  - {at: 'layres.*', of: output}\n"
    )
    result = gradlab("run", path)
    assert result.exit_code == 2
    places = [
        line.split(": ")[0].rpartition("wrong.yaml:")[2] for line in result.stderr.splitlines() if ".yaml:" in line
    ]
    assert places == ["2:1", "5:23", "6:1", "8:10"]
    assert "no tensor matches 'layres.*'. Did you mean 'layers.*'?" in result.stderr
    assert result.stderr.endswith("4 problems; nothing was run.\n")


def test_resuming_with_other_code_says_so(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "model.init_args.fail_at=12").exit_code == 1
    run = the_run()
    run.resolved.write_text(run.resolved.read_text().replace("fail_at: 12", "fail_at: 100"))
    record = json.loads(run.record.read_text())
    run.record.write_text(json.dumps({**record, "git": {"sha": "0123456789abcdef"}}))
    result = gradlab("run", "--resume", run.id)
    assert "warning: the run began with commit 0123456789, the code here is at unknown.\n" in result.stderr


def test_a_failure_of_the_users_code_is_exit_code_1_with_its_traceback(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.fail_at=7")
    assert result.exit_code == 1
    run = the_run()
    for text in (result.stderr, run.log.read_text()):
        assert "ArithmeticError: the user's mistake" in text and "in training_step" in text
    assert "pytorch_lightning" not in result.stderr and "pytorch_lightning" in run.log.read_text()
    assert f"the log is {run.log}" in result.stderr
    assert run.status() == "failed"
    assert run.read_exit()["reason"] == "ArithmeticError: the user's mistake"
    assert torch.load(run.last_checkpoint, weights_only=False)["global_step"] == 5


def test_a_failed_run_can_be_resumed_from_its_last_epoch(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "model.init_args.fail_at=7").exit_code == 1
    run = the_run()
    run.resolved.write_text(run.resolved.read_text().replace("fail_at: 7", "fail_at: 100"))
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 0, result.stderr
    assert "attempt 2, from step 5" in result.stderr


def test_a_run_without_a_checkpoint_is_resumed_from_the_start(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "model.init_args.fail_at=2").exit_code == 1
    run = the_run()
    run.resolved.write_text(run.resolved.read_text().replace("fail_at: 2", "fail_at: 100"))
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 0, result.stderr
    assert "attempt 2, from the start: it has no checkpoint" in result.stderr
    assert "15 steps" in result.stdout


def test_a_damaged_checkpoint_is_explained_and_the_folder_left_as_it_was(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "model.init_args.fail_at=7").exit_code == 1
    run = the_run()
    run.last_checkpoint.write_bytes(run.last_checkpoint.read_bytes()[:1000])
    before = snapshot_of(run.path)
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{run.last_checkpoint} is damaged and cannot be read")
    assert result.stderr.count("\n") == 1
    assert snapshot_of(run.path) == before


def test_a_run_that_finished_is_not_resumed(gradlab, experiment, the_run):
    assert gradlab("run", experiment, "trainer.max_epochs=1").exit_code == 0
    before = snapshot_of(the_run().path)
    result = gradlab("run", "--resume", "@1")
    assert result.exit_code == 2
    assert result.stderr == f"mine ({the_run().id}) has finished; there is nothing to resume.\n"
    assert snapshot_of(the_run().path) == before


def test_a_finding_can_stop_the_run_which_has_not_failed_then(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.nan_at=6", "diagnose.on_finding=stop")
    assert result.exit_code == 79
    ended = the_run().read_exit()
    assert (ended["code"], ended["steps"], the_run().status()) == (79, 7, "stopped")
    assert ended["reason"].startswith("stopped by GL702 at step 6: ") and ended["reason"][:-1] in result.stderr
    assert "Traceback" not in result.stderr and f"go on with: gradlab run --resume {the_run().id}" in result.stderr
    assert the_run().last_checkpoint.exists()
    listed = gradlab("runs", "--state", "stopped", "--json").stdout
    assert json.loads(listed)[0]["reason"] == ended["reason"]


def test_a_finding_can_save_a_checkpoint_and_the_run_goes_on(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.nan_at=6", "diagnose.on_finding=checkpoint")
    assert result.exit_code == 0, result.stderr
    assert len(list(the_run().checkpoints.glob("finding-step*.ckpt"))) == 1
    assert "non-finite gradient" in result.stdout


def test_a_finding_can_open_a_profile_window(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.nan_at=6", "diagnose.on_finding=profile")
    assert result.exit_code == 0, result.stderr
    assert len(list((the_run().events / "profile").glob("*/*.pt.trace.json.gz"))) == 1


def test_a_non_finite_update_is_left_out_and_its_batch_kept(gradlab, experiment, the_run):
    result = gradlab("run", experiment, "model.init_args.nan_at=6", "diagnose.nonfinite=skip")
    assert result.exit_code == 0, result.stderr
    shown = gradlab("show").stdout
    assert "look into the loss" in shown and "The update was left out." in shown
    assert (the_run().path / "nonfinite-step6.pt").exists()


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("trainer.accelerator=gpu", 3, "asks for a GPU, but torch"),
        ("resources.gpus=1", 2, "resources.gpus is 1, but trainer.accelerator is 'cpu'"),
        ("trainer.max_epoch=2", 2, "Did you mean 'max_epochs'?"),
        ('taps=[{at: "nte.*", of: output}]', 2, "Did you mean 'net.*'?"),
    ],
)
def test_what_cannot_run_is_refused_before_a_folder_is_made(gradlab, experiment, monkeypatch, override, code, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = gradlab("run", experiment, override)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (experiment.parent / "runs").exists()


def test_a_place_where_no_run_can_be_written_is_exit_code_3(gradlab, experiment):
    (experiment.parent / "full").write_text("a file where a folder should be")
    result = gradlab("run", experiment, "--runs", "full")
    assert result.exit_code == 3
    assert result.stderr == (
        "cannot make a run folder in full/mine: Not a directory. Choose another place with --runs DIR.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Which experiment?"),
        (("mine.yaml", "--resume", "@1"), "--resume takes no experiment"),
        (("--resume", "nothing"), "no run 'nothing': runs holds no runs."),
        (("absent.yaml",), "absent.yaml: there is no such file."),
    ],
)
def test_a_call_that_means_nothing_is_exit_code_2(gradlab, experiment, arguments, message):
    result = gradlab("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_print_config_prints_what_would_run_and_runs_nothing(gradlab, experiment):
    result = gradlab("run", experiment, "--print-config", "trainer.max_epochs=9")
    assert result.exit_code == 0
    assert "max_epochs: 9" in result.stdout
    (experiment.parent / "again.yaml").write_text(result.stdout)
    assert gradlab("run", "again.yaml", "--print-config").stdout == result.stdout
    assert not (experiment.parent / "runs").exists()


@pytest.mark.parametrize("command", [("check",), ("run", "--dry-run")])
def test_check_says_what_would_run_and_runs_nothing(gradlab, experiment, command):
    result = gradlab(*command, experiment)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{experiment} is in order: mine\n  model  Model, 58 parameters\n  data   Data\n")
    assert not (experiment.parent / "runs").exists()


def test_check_lists_the_sites_that_a_tap_may_name(gradlab, experiment):
    result = gradlab("check", experiment, "--sites")
    sites = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("    ")]
    assert sites[0] == "input" and {"net.1", "output", "net.0.weight"} <= set(sites)


ENDLESS = ("trainer.max_epochs=-1", "trainer.enable_checkpointing=true")


def start_process(experiment, *overrides):
    """A run in a process of its own that has got to its second epoch."""
    command = [sys.executable, "-m", "gradlab", "run", str(experiment), *ENDLESS, *overrides]
    process = subprocess.Popen(
        command, cwd=experiment.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("epoch 2"):
            return process
    raise AssertionError(f"ended with {process.wait()}")


def test_a_process_that_gets_sigterm_ends_with_75_and_a_checkpoint(experiment, the_run):
    process = start_process(experiment)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 75, stderr
    run = the_run()
    step = torch.load(run.last_checkpoint, weights_only=False)["global_step"]
    assert f"stopped by SIGTERM after step {step}" in stderr
    assert stdout.splitlines()[-1].endswith(f" board {run.id}")


def test_a_process_that_is_killed_leaves_a_lost_run_that_can_be_resumed(gradlab, experiment, the_run):
    process = start_process(experiment)
    process.kill()
    process.communicate()
    run = the_run()
    assert run.status() == "lost"
    run.resolved.write_text(run.resolved.read_text().replace("max_epochs: -1", "max_epochs: 500"))
    step = torch.load(run.last_checkpoint, weights_only=False)["global_step"]
    run.resolved.write_text(run.resolved.read_text().replace("max_epochs: 500", f"max_epochs: {step // 5 + 2}"))
    result = gradlab("run", "--resume", run.id)
    assert result.exit_code == 0, result.stderr
    assert f"attempt 2, from step {step}" in result.stderr


@pytest.mark.slow
def test_two_ranks_are_one_run_with_one_event_file(experiment, the_run):
    options = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1"]
    command = [sys.executable, "-m", "gradlab", "run", str(experiment), *options]
    done = subprocess.run(command, cwd=experiment.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run = the_run()
    assert done.stdout.count(" board ") == 1
    assert run.status() == "done" and run.read_exit()["steps"] == 3  # 5 batches shared by two
    assert len(event_files(run.events)) == 1
    assert (run.path / "log-rank1.txt").is_file()


def test_a_rank_that_gradlab_did_not_start_is_explained(gradlab, experiment, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = gradlab("run", experiment)
    assert result.exit_code == 2
    assert "Start the ranks with torchrun" in result.stderr
    assert not (experiment.parent / "runs").exists()


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("trainer.devices=0", 2, "argument 1: the Trainer refused: `Trainer(devices=0)`"),
        ("trainer.val_check_interval=1.5", 2, "argument 1: trainer.val_check_interval must be a number from 0 to 1"),
        ("trainer.barebones=true", 2, "argument 1: trainer.barebones is without a log and checkpoints"),
        ("trainer.precision=transformer-engine", 3, "the Trainer cannot be built on this machine: Requirement"),
    ],
)
def test_what_the_trainer_would_refuse_is_known_before_anything_runs(
    gradlab, experiment, command, override, code, message
):
    result = gradlab(command, experiment, override)
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert not (experiment.parent / "runs").exists()
