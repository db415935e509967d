from gradlab.profiling.window import Reason, Window


def test_a_window_warms_up_and_records():
    window = Window(reason=Reason("schedule"), warmup=1, active=2)
    states = []
    for num_ended in range(3):
        window.num_ended = num_ended
        states.append(window.state)
    assert states == ["warmup", "active", "last"]
