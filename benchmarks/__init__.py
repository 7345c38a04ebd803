"""Benchmarks: the same work done by this project and by what people would use instead. See docs/BENCHMARKS.md."""
