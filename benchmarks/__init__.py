"""What the toolkit's speed is made of, measured against plain versions in one run: `python -m benchmarks`."""
