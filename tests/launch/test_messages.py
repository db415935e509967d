"""The log has everything; the terminal has what concerns the user."""

import logging
import warnings

import pytest
from lightning_fabric.utilities.warnings import PossibleUserWarning

from gradlab.launch.messages import messages_to


@pytest.fixture
def speak(tmp_path, capsys):
    def speak(action):
        """(log, terminal) of what `action` says."""
        with messages_to(tmp_path / "log.txt") as log, warnings.catch_warnings():
            warnings.simplefilter("always")
            action(log)
        return (tmp_path / "log.txt").read_text(), capsys.readouterr().err

    return speak


def test_a_warning_of_the_users_code_is_in_both(speak):
    log, terminal = speak(lambda _: warnings.warn("the loss is odd", stacklevel=1))
    assert "UserWarning" in log and "the loss is odd" in log
    assert terminal == "warning: the loss is odd\n"


def test_lightnings_advice_is_in_the_log_alone(speak):
    log, terminal = speak(lambda _: warnings.warn("more workers", PossibleUserWarning, stacklevel=1))
    assert "more workers" in log
    assert terminal == ""


def test_lightnings_banners_are_in_the_log_alone(speak):
    log, terminal = speak(lambda _: logging.getLogger("pytorch_lightning.utilities.rank_zero").info("GPU available"))
    assert "GPU available" in log
    assert terminal == ""


def test_afterwards_nothing_goes_to_the_log(tmp_path, speak):
    shown, handlers = warnings.showwarning, logging.getLogger().handlers[:]
    speak(lambda log: log.info("during"))
    logging.getLogger("gradlab").info("afterwards")
    assert "afterwards" not in (tmp_path / "log.txt").read_text()
    assert warnings.showwarning is shown
    assert logging.getLogger().handlers == handlers
