"""Benchmarks: the same work here and in peers, interleaved in one run, against the machine's own matrix products."""
