"""`gradlab attach`: somebody else's training script, watched without a line changed.

    program.py   which command is run, and the environment that makes its processes come back here
    site/        what Python imports at the start of each of those processes; boot.py is what it calls
    session.py   one process: its optimizers, the models that they train, the monitors on them
    seek.py      the model that an optimizer trains, before its first forward
    ending.py    how the process ends, and a traceback without gradlab in it
    report.py    where results go and what is said at the end

The command replaces itself by the script (`exec`): same process, same arguments, same standard streams, same signals,
same exit code. Nothing here may raise into the script.
"""
