"""Runs: which are needed, how they execute, and what becomes of those whose process ends.

    freshness.py   which assets are missing or out of date
    plan.py        which job runs at which partition, in which order
    executing.py   executing a job in this process
    executors.py   the executors that JSAE_EXECUTOR names
    at_work.py     which runs are at work, what they wait for, and ending them

Not here: the jobs, schedules and sensors that start runs (`automation.py`), the command line (`command.py`), runs on
other machines (`ray_launcher.py`).
"""
