"""`gradlab attach` and scripts of all kinds: each behaves as without gradlab, and what can be watched is watched."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest
from scripts import Script, without_ours

from gradlab.events.reader import read_events

pytestmark = pytest.mark.slow

PLAIN = """
import hashlib
norms = {}
net = Net()
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(12):
    optimizer.zero_grad()
    F.cross_entropy(net(torch.randn(4, 8)), torch.randint(0, 3, (4,))).backward()
    norms = {name: p.grad.double().norm().item() for name, p in net.named_parameters()}
    optimizer.step()
weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
print(sys.argv, sys.path[0], __name__, __file__, hashlib.sha256(weights).hexdigest(), torch.rand(1).item())
if "--norms" in sys.argv:
    import json
    print(json.dumps(norms))
"""


def steps_of(ended, metric: str = "weight_grad.norm") -> list[int]:
    """The steps that the event file has of a metric."""
    (file,) = ended.event_files
    return steps_in(file, metric)


def steps_in(file: Path, metric: str = "weight_grad.norm") -> list[int]:
    """The steps that one event file has of a metric."""
    prefix = f"gradlab/{metric}/"
    return [
        value.step for value in read_events(file) if value.plugin_name == "gradlab" and value.tag.startswith(prefix)
    ]


def own_frames(traceback: str) -> list[str]:
    """Of a traceback the script's own frames, and the last line."""
    frames = re.findall(r'  File "[^"]*train.py".*\n(?:    .*\n)+', traceback)
    return [*frames, traceback.strip().splitlines()[-1]]


def test_a_script_sees_no_difference_and_every_step_is_logged(script: Script) -> None:
    script.write(PLAIN)
    bare, attached = script.bare("-a", "--taps", "x"), script.attached("-a", "--taps", "x")
    assert attached.code == bare.code == 0
    assert attached.stdout == bare.stdout
    assert attached.said == []
    assert steps_of(attached) == list(range(12))
    assert attached.run.status() == "done"
    assert "fc2.weight" in attached.stderr and "gradlab board" in attached.stderr


def test_the_numbers_are_those_of_autograd(script: Script) -> None:
    attached = script.write(PLAIN).attached("--norms", flags=("--taps", "*=weight_grad", "--taps", "*=output_grad"))
    truth = json.loads(attached.stdout.splitlines()[-1])
    assert attached.layers == pytest.approx(truth, rel=1e-6)
    assert steps_of(attached, "output_grad.norm") == list(range(12))


def test_a_module_is_run_by_its_name(script: Script) -> None:
    script.write(PLAIN)
    bare = script.call(sys.executable, "-m", "train", "x")
    attached = script.call(sys.executable, "-m", "gradlab", "attach", "-m", "train", "x")
    assert attached.stdout == bare.stdout and attached.code == 0
    assert attached.run.name == "train" and steps_of(attached) == list(range(12))


def test_a_script_that_trains_nothing_is_told_so(script: Script) -> None:
    ended = script.write("print(Net()(torch.zeros(1, 8)).shape)").attached()
    assert ended.code == 0 and ended.stdout == "torch.Size([1, 3])\n"
    assert ended.said == [
        "gradlab: nothing was watched: no optimizer of torch.optim has trained a module in this script; "
        "gradlab.watch(model, optimizer) in it follows any other that has a step."
    ]
    assert not (script.folder / "runs").exists()


def test_a_script_without_torch_runs_too(script: Script) -> None:
    ended = script.write("print('done')", model="").attached()
    assert (ended.code, ended.stdout) == (0, "done\n")
    assert ended.said == ["gradlab: nothing was watched: this script has not imported torch."]


def test_two_models_in_turn_are_both_watched_and_the_first_is_let_go(script: Script) -> None:
    code = """
import weakref
first = Net()
train(first, torch.optim.Adam(first.parameters()), 5)
gone = weakref.ref(first)
del first
print(gone() is None)
second = nn.Sequential(nn.Linear(8, 3))
train(second, torch.optim.SGD(second.parameters(), 0.1), 7)
"""
    ended = script.write(code).attached()
    assert ended.stdout == script.bare().stdout == "True\n"
    assert {file.parent.name for file in ended.event_files} == {"tb", "2-Sequential"}
    assert set(ended.layers) >= {"Net: fc1.weight", "2-Sequential: 0.weight"}
    assert "12 steps" in ended.stderr


def test_an_optimizer_that_is_replaced_goes_on_counting_and_the_old_one_is_let_go(script: Script) -> None:
    code = """
import weakref
net = Net()
optimizer = torch.optim.Adam(net.parameters())
train(net, optimizer, 5)
gone = weakref.ref(optimizer)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
print(gone() is None)
train(net, optimizer, 5)
"""
    ended = script.write(code).attached()
    assert ended.stdout == script.bare().stdout == "True\n"
    assert steps_of(ended) == list(range(10))


def test_several_optimizers_of_one_model_count_together(script: Script) -> None:
    code = """
net = Net()
head, body = torch.optim.SGD(net.fc2.parameters(), 0.1), torch.optim.Adam(net.fc1.parameters())
for _ in range(4):
    F.cross_entropy(net(torch.randn(4, 8)), torch.randint(0, 3, (4,))).backward()
    for one in (head, body):
        one.step()
        one.zero_grad()
"""
    ended = script.write(code).attached()
    assert ended.code == 0 and steps_of(ended) == list(range(4))
    assert set(ended.layers) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_two_models_that_train_each_other_have_an_event_file_each(script: Script) -> None:
    code = """
class Critic(Net):
    pass
maker, critic = nn.Sequential(nn.Linear(4, 8)), Critic()
makes, judges = torch.optim.Adam(maker.parameters()), torch.optim.Adam(critic.parameters())
for _ in range(3):
    judges.zero_grad()
    critic(maker(torch.randn(2, 4)).detach()).mean().backward()
    judges.step()
    makes.zero_grad()
    (-critic(maker(torch.randn(2, 4))).mean()).backward()
    makes.step()
"""
    ended = script.write(code).attached()
    assert ended.code == 0 and ended.said == []
    assert {file.parent.name for file in ended.event_files} == {"tb", "2-Critic"}


def test_parameters_that_belong_to_no_module_are_named(script: Script) -> None:
    code = """
x = torch.ones(3, requires_grad=True)
optimizer = torch.optim.SGD([x], 0.1)
for _ in range(3):
    x.square().sum().backward()
    optimizer.step()
"""
    ended = script.write(code).attached()
    assert ended.code == 0
    assert re.fullmatch(
        r"gradlab: the model of SGD \(made in train.py, line \d+\) is not watched: its parameters are in no module\.",
        ended.said[0],
    )


def test_a_model_whose_forward_is_called_past_its_hooks_is_watched_from_the_first_step(script: Script) -> None:
    code = """
net = Net()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(4):
    net.forward(torch.randn(2, 8)).mean().backward()
    optimizer.step()
"""
    ended = script.write(
        code.replace("net.forward(", "F.linear(F.linear(").replace(
            "torch.randn(2, 8))", "torch.randn(2, 8), net.fc1.weight), net.fc2.weight)"
        )
    )
    assert steps_of(ended.attached()) == [0, 1, 2, 3]


def test_a_pattern_that_matches_nothing_is_said_in_one_line(script: Script) -> None:
    ended = script.write(PLAIN).attached(flags=("--taps", "fc3.*"))
    assert ended.code == 0 and ended.stdout == script.bare().stdout
    lines = (script.folder / "train.py").read_text().splitlines()
    line = lines.index("optimizer = torch.optim.Adam(net.parameters(), 1e-2)") + 1
    assert ended.said == [
        f"gradlab: the model of Adam (made in train.py, line {line}) is not watched: no tensor matches 'fc3.*'. "
        "The model has: fc1.weight, fc1.bias, fc2.weight, fc2.bias."
    ]
    assert not list((script.folder / "runs").glob("*/*"))


def test_a_script_that_makes_errors_of_warnings_meets_none_of_ours(script: Script) -> None:
    ended = script.write("import warnings\nwarnings.simplefilter('error')\n" + PLAIN).attached(
        flags=("--taps", "*=weight_grad", "--taps", "fc3*=output")
    )
    assert ended.code == 0 and steps_of(ended) == list(range(12))
    (line,) = ended.said
    assert line.startswith("gradlab: a tap saw nothing in its first step: no tensor matches 'fc3*'.")


def test_data_workers_are_left_alone(script: Script) -> None:
    code = """
from torch.utils.data import DataLoader, TensorDataset
data = TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
net = Net()
optimizer = torch.optim.Adam(net.parameters())
for epoch in range(2):
    for x, y in DataLoader(data, 16, num_workers=2):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
print(net.fc1.weight.sum().item())
"""
    bare, ended = script.write(code).bare(), script.attached()
    assert (ended.code, ended.stdout, ended.said) == (0, bare.stdout, [])
    assert steps_of(ended) == list(range(8))
    assert ended.stderr.count("open it in TensorBoard") == 1


def test_a_child_that_is_forked_and_trains_has_results_of_its_own(script: Script) -> None:
    code = """
import multiprocessing
net = Net()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
train(net, optimizer, 3)
child = multiprocessing.get_context("fork").Process(target=train, args=(net, optimizer, 5))
child.start(); child.join()
train(net, optimizer, 3)
print(child.exitcode)
"""
    ended = script.write(code).attached()
    assert (ended.code, ended.stdout, ended.said) == (0, "0\n", [])
    mine, childs = sorted(ended.event_files, key=lambda file: "process-" in str(file))
    assert steps_in(mine) == list(range(6))
    assert childs.parent.name.startswith("process-")


def test_spawned_children_are_followed(script: Script) -> None:
    code = """
import multiprocessing
if __name__ == "__main__":
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    child = multiprocessing.get_context("spawn").Process(target=train, args=(net, optimizer, 5))
    child.start(); child.join()
    print(child.exitcode)
"""
    ended = script.write(code).attached()
    assert (ended.code, ended.stdout) == (0, "0\n")
    assert steps_of(ended)


@pytest.mark.parametrize(
    ("leave", "code", "reason"),
    [
        ("sys.exit(4)", 4, "sys.exit(4)"),
        ("import os; sys.stdout.flush(); os._exit(3)", 3, "os._exit(3)"),
        ("sys.exit('no more')", 1, "sys.exit('no more')"),
        ("sys.exit()", 0, "done"),
        ("raise SystemExit(5)", 5, "SystemExit(5)"),
        ("def main(): exit(6)\nmain()", 6, "SystemExit(6)"),
        ("try: sys.exit(7)\nexcept SystemExit: pass", 0, "done"),
    ],
)
def test_the_exit_code_is_the_scripts(script: Script, leave: str, code: int, reason: str) -> None:
    net = "net = Net(); train(net, torch.optim.SGD(net.parameters(), 0.1), 3); print('out')\n"
    ended = script.write(net + leave).attached()
    assert (ended.code, ended.stdout) == (code, "out\n")
    assert "3 steps" in ended.stderr
    assert (ended.run.read_exit()["code"], ended.run.read_exit()["reason"]) == (code, reason)
    assert steps_of(ended) == [0, 1, 2]


@pytest.mark.parametrize("where", ["forward", "backward", "loop"])
def test_an_exception_shows_the_scripts_own_traceback(script: Script, where: str) -> None:
    code = """
class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("backward")

class Failing(Net):
    def forward(self, x):
        y = super().forward(x)
        if sys.argv[1] == "forward":
            raise ArithmeticError("forward")
        return Broken.apply(y) if sys.argv[1] == "backward" else y

net = Failing()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
net(torch.randn(2, 8)).sum().backward()
optimizer.step()
raise ArithmeticError("loop")
"""
    bare, ended = script.write(code).bare(where), script.attached(where, flags=("--taps", "*=output,output_grad"))
    assert ended.code == bare.code == 1
    assert own_frames(without_ours(ended.stderr)) == own_frames(bare.stderr)
    assert "gradlab" not in without_ours(ended.stderr)
    assert ended.run.status() == "failed" and ended.run.read_exit()["reason"] == f"ArithmeticError: {where}"


def test_standard_input_and_a_change_of_folder_are_the_scripts_own(script: Script) -> None:
    code = """
import os, tempfile
os.chdir(tempfile.gettempdir())
net = Net(); train(net, torch.optim.SGD(net.parameters(), 0.1), int(input("steps? ")))
print(sys.stdin.read())
"""
    ended = script.write(code).attached(stdin="3\nand the rest", flags=("--logdir", "logs"))
    assert (ended.code, ended.stdout) == (0, "steps? and the rest\n")
    (file,) = (script.folder / "logs").glob("events.out.*")
    assert steps_in(file) == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_script_as_they_were(script: Script, number: signal.Signals) -> None:
    code = """
net = Net(); optimizer = torch.optim.SGD(net.parameters(), 0.1)
train(net, optimizer, 3)
print("ready", flush=True)
import time
while True:
    time.sleep(0.01); train(net, optimizer, 1)
"""
    script.write(code)
    process = script.start(sys.executable, "-m", "gradlab", "attach", "train.py")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == -number
    if number is signal.SIGINT:
        assert re.search(r"^KeyboardInterrupt", stderr, re.M) and "open it in TensorBoard" in stderr


def test_a_signal_handler_of_the_script_is_not_replaced(script: Script) -> None:
    code = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(7)))
net = Net(); train(net, torch.optim.SGD(net.parameters(), 0.1), 3)
os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = script.write(code).attached()
    assert (ended.code, ended.stdout) == (7, "saved\n")
    assert ended.run.read_exit()["code"] == 7


def test_the_machines_own_sitecustomize_is_imported_and_the_path_is_as_it_was(script: Script) -> None:
    (script.folder / "site").mkdir()
    (script.folder / "site" / "sitecustomize.py").write_text("import sys; sys.marked = True")
    script.write("print(sys.marked, sys.path)")
    env = {"PYTHONPATH": f"{script.folder}/site:{sys.path[0]}:{__import__('gradlab').__path__[0]}/.."}
    assert script.attached(env=env).stdout == script.bare(env=env).stdout


def test_options_may_come_from_a_file(script: Script) -> None:
    (script.folder / "watch.yaml").write_text(
        "taps:\n  - {at: '*', of: [weight_grad, weight], every: 5}\n"
        "profile: {wait: 1, warmup: 1, active: 2}\nlogdir: logs\n"
    )
    ended = script.write(PLAIN).attached(flags=("--config", "watch.yaml"))
    assert ended.code == 0 and ended.said == []
    (file,) = (script.folder / "logs").glob("events.out.*")
    assert steps_in(file, "weight.norm") == [0, 5, 10]
    assert next((script.folder / "logs" / "profile").glob("step_*/summary.json")).is_file()
    assert "tensorboard --logdir" in ended.stderr and not list((script.folder / "logs").glob(".gradlab*"))
