"""Files: a tree in the store, contents as immutable chunks on the nodes, and the fsspec face.

`core` puts the parts together, `filesystem` is what users hold; everything else is inside.
"""
