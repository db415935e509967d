"""The command line. Each command imports what it needs inside."""
