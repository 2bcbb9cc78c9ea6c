"""Published models, loaded in new processes in every way: `python -m tests.hub.matrix`, and a part of it in the tests.

`rows.py` is the table of loads and the rule of what each must give, `making.py` makes and pushes the models, `probe.py`
loads them, `references.py` computes what they are compared with, `judging.py` compares.
"""
