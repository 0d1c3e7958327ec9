"""The on-disk format of a model: manifest, checksums, tables. Export writes it, the engine reads it."""
