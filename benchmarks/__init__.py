"""Speed, as ratios of interleaved pairs: absolute times of a shared machine say little, ratios hold."""
