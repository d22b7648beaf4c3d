"""How good pictures are: metrics, the pairs they are measured on, and reports. What `varsr eval` does is here."""
