"""What runs inside the worker and nowhere else: it opens the checkpoint, and is hostile from then
on.

Nothing here is trusted by the parent, and nothing of the parent's half may be imported here but
`isoload.manifest` and `isoload.values`.
"""
