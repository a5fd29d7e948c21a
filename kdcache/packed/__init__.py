"""A cache packed into one HDF5 file: the same documents and samples, read by offsets taken once, without HDF5 in between.

`pack` writes such a file, `unpack` makes a folder of it again; `folder` says what each thing that a cache does with its folder
means here. FORMAT.md has the layout.
"""
