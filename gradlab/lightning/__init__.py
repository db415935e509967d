"""gradlab inside Lightning: a callback over Monitor, a Logger into the same event file, a module that declares taps."""
