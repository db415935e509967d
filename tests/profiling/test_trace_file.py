import gzip
import json

import pytest
import torch
from profiling.example import Run, read_trace
from torch_tb_profiler.profiler.data import RunProfileData
from torch_tb_profiler.profiler.event_parser import ProfileRole

import gradlab
from gradlab.profiling.options import Profile
from gradlab.profiling.recording import Recording
from gradlab.profiling.trace_file import tensorboard_dialect
from gradlab.profiling.window import Reason, Window
from gradlab.profiling.writer import write_window

OLD = {"fwdbwd": "forward_backward", "user_annotation": "cpu_op", "cuda_runtime": "runtime", "cuda_driver": "runtime"}


def write(recorded, folder, **options):
    window = Window(reason=Reason("schedule"), warmup=0, active=1)
    return write_window(recorded, folder, window, **options).folder


def record(run, *, steps=1):
    recording = Recording(Profile(), run.model)
    recording.start()
    for number in range(steps):
        recording.begin_step(number, waits_for_data=False)
        run.step()
        recording.end_step()
    return recording.stop()


@pytest.fixture
def raw(run, tmp_path):
    path = tmp_path / "kineto.json"
    record(run).results.save(str(path))
    return path.read_bytes()


def check_dialect(raw):
    """Nothing but the names of categories differs, and the events come last."""
    before, after = json.loads(raw), json.loads(tensorboard_dialect(raw))
    assert list(after)[-1] == "traceEvents"
    assert before.keys() - after.keys() == {"traceName"}
    for event in before["traceEvents"]:
        if event.get("cat") in OLD:
            event["cat"] = OLD[event["cat"]]
    assert {key: value for key, value in before.items() if key != "traceName"} == after


def test_the_dialect_of_this_torch_changes_categories_and_nothing_else(raw):
    assert b'"user_annotation"' in raw and b'"fwdbwd"' in raw
    check_dialect(raw)


@pytest.mark.parametrize("layout", [{}, {"indent": 4}, {"separators": (",", ":")}])
def test_another_layout_of_the_same_document_gives_the_same_dialect(raw, layout):
    document = json.loads(raw)
    check_dialect(
        json.dumps({"traceEvents": document.pop("traceEvents"), **document, "later": [[1], [2]]}, **layout).encode()
    )


@pytest.mark.parametrize("name", ["nccl_parser_config.json.gz", "triton_example.json.gz", "cpu_only.json.gz"])
def test_the_dialect_of_stored_cuda_traces(cuda_trace, name):
    check_dialect(cuda_trace(name))


def test_an_unfinished_step_is_renamed(raw):
    events = json.loads(tensorboard_dialect(raw, unfinished=0))["traceEvents"]
    assert "unfinished step 0" in {event["name"] for event in events}
    assert not [event for event in events if event["name"].startswith("ProfilerStep#")]


def test_windows_of_one_step_share_a_directory_between_ranks_and_never_between_windows(tmp_path):
    names = [write(record(Run()), tmp_path, rank=rank).name for rank in (0, 1, 0, 10, 0)]
    assert names == ["step_000000", "step_000000", "step_000000_2", "step_000000", "step_000000_3"]
    assert len(list((tmp_path / "step_000000").glob("*.gz"))) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_trace_says_what_was_recorded(run, tmp_path):
    trace = read_trace(write(record(run, steps=2), tmp_path))
    assert trace["Framework"] == "pytorch-lightning" and trace["profile_memory"] == 1
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"ProfilerStep#0", "ProfilerStep#1", "[pl][module]Linear: 0", "[pl][profile]train_step"} <= names


# torch-tb-profiler calls pandas with `copy=False`, which pandas 3 deprecates; only traces with kernels get there.
reads_kernels = pytest.mark.filterwarnings("ignore:The copy keyword is deprecated")


def parsed(raw, folder):
    path = folder / "rank0.1.pt.trace.json"
    path.write_bytes(raw)
    return RunProfileData.parse("rank0", 1, str(path), str(folder))


@reads_kernels
def test_tensorboard_reads_device_time_and_runtime_from_a_cuda_trace(cuda_trace, tmp_path):
    raw = cuda_trace("nccl_parser_config.json.gz")
    before, after = parsed(raw, tmp_path), parsed(tensorboard_dialect(raw), tmp_path)
    assert sum(operator.device_duration for operator in before.op_list_groupby_name) == 0
    assert sum(operator.device_duration for operator in after.op_list_groupby_name) > 10_000
    assert before.avg_costs.costs[ProfileRole.Runtime] == 0 < after.avg_costs.costs[ProfileRole.Runtime]
    assert {kernel.op_name for kernel in before.kernel_list_groupby_name_op} == {"CallTreeRoot"}
    assert "aten::cudnn_convolution" in {kernel.op_name for kernel in after.kernel_list_groupby_name_op}
    assert after.steps_names == ["4", "5", "6"]


@reads_kernels
def test_tensorboard_reads_a_triton_kernel_under_its_operator(cuda_trace, tmp_path):
    after = parsed(tensorboard_dialect(cuda_trace("triton_example.json.gz")), tmp_path)
    assert after.has_runtime and after.has_kernel
    assert sum(operator.device_duration for operator in after.op_list_groupby_name) > 0


def test_tensorboard_reads_forward_and_backward_as_belonging_together(raw, tmp_path):
    assert len(parsed(raw, tmp_path).forward_backward_events) == 0
    assert len(parsed(tensorboard_dialect(raw), tmp_path).forward_backward_events) > 0


def test_saving_fails_without_a_trace_of_it(run, tmp_path):
    recorded = record(run)
    recorded.results.save(str(tmp_path / "already"))
    with pytest.raises(RuntimeError, match="already saved"):
        write(recorded, tmp_path / "profile")
    assert list((tmp_path / "profile").iterdir()) == []
    assert not torch.autograd._profiler_enabled()


def test_the_untouched_trace_is_kept_on_request(run, tmp_path):
    with gradlab.profile(tmp_path, run.model, raw=True, strict=True) as profiler:
        run.step()
    (found,) = profiler.windows
    raw = json.loads(gzip.decompress((found / "rank0.kineto.json.gz").read_bytes()))
    categories = {event.get("cat") for event in raw["traceEvents"]}
    assert {"fwdbwd", "cpu_op"} <= categories and "forward_backward" not in categories
