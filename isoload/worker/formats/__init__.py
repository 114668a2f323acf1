"""One kind of file a module: `read(source, request, reading)` fills the reading or raises a
Failure.
"""
