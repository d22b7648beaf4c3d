"""What runs in production: folded weights, the KV cache, the loops over scales and refiner steps, the public Engine."""
