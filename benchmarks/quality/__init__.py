"""Image quality on held-out photographs: metrics, photographs, evaluation and reports of `eval_quality.py`."""
