"""Long-context tasks, one module each.

`TASKS` of a module are tasks whose samples are made offline, at any length, for any tokenizer: {name: factory}, where a
factory takes the name and the text in which needles are hidden. `ALONE` are measurements of another kind, such as
perplexity: {name: subclass of `Task`}. A module that is added to this folder is known to `hf-longctx eval --task` at
once; scores that it alone needs are its `METRICS`.
"""
