"""What TensorBoard shows of a run: the plugin with the tab **Gradients**, and the same views as one HTML file.

Start at plugin.py. The way of a number: source.py (TensorBoard's data provider) or file_source.py (event files) ->
metrics.py and reader.py (the metrics of one run) -> pooling.py (to pixels), compare.py -> answers.py (what the page
asks for) -> wire.py (bytes) -> static/ (the page). html_report.py asks everything ahead. Nothing here sees torch.
"""
