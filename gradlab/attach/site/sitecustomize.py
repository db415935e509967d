"""Imported by Python at the start of each process of an attached script; gives way to the machine's own."""

try:
    from gradlab.attach.bootstrap import start
except ImportError as error:
    import sys

    print(f"gradlab: {sys.executable} is not watched: {error}", file=sys.stderr)
else:
    start(__file__)
