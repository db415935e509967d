"""Run folders: create, list, read, and record where a run came from."""
