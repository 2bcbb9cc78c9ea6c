def rows(*a):
    yield from ()
