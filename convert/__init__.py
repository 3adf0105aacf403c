"""Published checkpoints -> TinyWave folders (`tinywave convert SOURCE DEST`), one source format a file."""
