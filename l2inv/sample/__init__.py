"""A made-up inventory and a metadata store that serves it: for the demo, the tests and benchmarks."""
