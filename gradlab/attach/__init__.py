"""`gradlab attach`: somebody else's training script, watched without a line changed.

The command replaces itself by the script (`exec`): same process, same arguments, same standard streams, same signals,
same exit code. Start at command.py, then follow a process:

    command.py          which command is run, and the environment by which its processes import gradlab
    options.py          what was asked for, as one variable of that environment
    site/               what Python imports at the start of each process; it calls bootstrap.py
    watching.py         one process: made_optimizers.py, the models that they train (model_search.py, module_hooks.py),
                        and the monitors on those (watched_model.py)
    exit_hooks.py       how the process ends, and tracebacks.py without gradlab in them
    report.py           where results.py go; rendezvous.py across nodes, closing.py where nothing was trained

Nothing here may raise into the script.
"""
