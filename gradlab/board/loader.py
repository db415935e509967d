"""What TensorBoard imports first. It must never fail: an exception here would end the `tensorboard` command.

So it needs the standard library, TensorBoard and `gradlab.tags` alone, and everything else of gradlab's is imported
inside `load`, under a try. What goes wrong is one line in the log, and TensorBoard runs without the tab.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from tensorboard.plugins import base_plugin

from gradlab.tags import KEPT_STEPS

log = logging.getLogger("gradlab")


class GradlabLoader(base_plugin.TBLoader):  # type: ignore[misc]
    """Loads the Gradients tab."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keep more steps of gradlab's series; read all live files of a run where the slow loader is used."""
        try:
            for plugin, kept in KEPT_STEPS.items():
                flags.samples_per_plugin.setdefault(plugin, kept)
        except Exception as error:
            log.warning("gradlab: cannot raise how many steps TensorBoard keeps: %s", error)

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin, or None where something that it needs is missing or broken."""
        try:
            from gradlab.board.plugin import GradientsPlugin

            return GradientsPlugin(context)
        except Exception as error:
            log.warning("gradlab: the Gradients tab is off: %s: %s", type(error).__name__, error)
            return None
