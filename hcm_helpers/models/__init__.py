"""The six generative models, one module each, from networks to samples."""
