"""What TensorBoard shows of a run: the plugin with the tab **Gradients**, and the same views as one HTML file.

The way of a number: `source` (TensorBoard's data provider) or `files` (event files) -> `series` (one metric of a run)
-> `cells` (pooled to pixels) -> `answers` (what the page asks for) -> `wire` (bytes) -> `static/` (the page).
"""
