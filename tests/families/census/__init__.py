"""Every causal language model of the installed transformers under attention methods, each as a tiny random model.

    python -m tests.families.census [family ...]

`settings` and `scope` are data; `building` makes a tiny model of a model type, `looking` judges it, `running` goes
through all of them, `record` keeps the verdicts per release of transformers.
"""
