"""Caches in a bucket of an object store (s3://, gs://, az://): the same documents and shards, other ways to write and to hold.

What a cache does with a folder is a handful of functions; `folder` says what each of them means here. FORMAT.md has the protocol.
"""
