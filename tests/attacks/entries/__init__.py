"""What runs inside a worker once an attacker has taken it over: native calls, no holding back.

Each module holds entries for `Sandbox.run`: bytes and descriptors in, and out what was achieved.
The tests judge by what happened outside; what an entry says of itself only shows that it did try.
Nothing here may run in the parent.
"""
