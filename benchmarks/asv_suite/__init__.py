"""Time, peak memory and quality over the history of the project, by airspeed velocity.

cd benchmarks && asv run --python=same   (or: asv continuous main HEAD)
"""
