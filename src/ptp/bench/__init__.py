"""Speed and memory, measured: interleaved rounds, medians."""
