"""The tasks, one file each: `LONG_TASKS` of a file is {name: task}. A file added to this folder is known at once."""
