"""How fast kdlab is: `python -m benchmarks` measures, prints tables and leaves a JSON file. No test ever does."""
