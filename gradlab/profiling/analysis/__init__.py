"""The events of a window made into numbers: pure functions from records to the dictionary in summary.json.

Start at summary.py: it takes the `WindowEvents` of events.py, attributes their time (attribution.py), classifies memory
(memory.py) and idle time (idle.py) and gives the verdict (verdict.py). ranks.py joins the summaries of all ranks.
Nothing here imports torch.
"""
