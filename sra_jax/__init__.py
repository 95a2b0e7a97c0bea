"""Self-Representation Alignment for diffusion transformers. The method is in `sra_jax/sra.py`."""
