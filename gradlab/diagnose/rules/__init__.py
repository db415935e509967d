"""Rules: each looks at frames and returns findings; one family a file."""
