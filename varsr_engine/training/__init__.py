"""Training of both stages of VARSR: the autoencoder with its codebook, then the transformer with its refiner."""
