"""Descriptors from and for other software: `import_store`, `export` and `convert_delg`.

Each of these modules has Options and run, as a stage's package has.
"""
