"""What runs in production: folded weights, the KV cache, the scale and refiner loops, the decoder, the public Engine."""
