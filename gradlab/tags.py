"""The names by which gradlab's series are found in an event file: plugins, tags, and how much TensorBoard keeps.

Belongs here: names that a writer and a reader must agree on. Does not: names of metrics, which are those of sites and
statistics. Only the standard library is imported: TensorBoard reads this file before it is known that all else works.
"""

from __future__ import annotations

SERIES_PLUGIN = "gradlab"
"""The plugin of series with one number a site."""
JACOBIAN_PLUGIN = "gradlab_jacobian"
JACOBIAN_PREFIX = "gradlab/jacobian/"
SPECTRUM_SUFFIX = "/singular_values"
"""Beside the block at `gradlab/jacobian/NAME`."""
FINDINGS_PLUGIN = "gradlab_findings"
FINDINGS_TAG = "gradlab/findings/records"
"""Files from before 0.2 have the tag of the text for it; a reader goes by the plugin."""
FINDINGS_TEXT_TAG = "gradlab/findings"
"""The findings in words, for TensorBoard's Text tab."""
HPARAMS_PLUGIN = "hparams"
"""TensorBoard's own, as the two tags of it that follow."""
HPARAMS_SESSION_TAG = "_hparams_/session_start_info"
HPARAMS_EXPERIMENT_TAG = "_hparams_/experiment"

KEPT_STEPS = {SERIES_PLUGIN: 5000, FINDINGS_PLUGIN: 0, JACOBIAN_PLUGIN: 500}
"""How many steps TensorBoard keeps of a series, by plugin; 0 is all. Its own default, 100, would show holes.
`--samples_per_plugin` has the last word."""
