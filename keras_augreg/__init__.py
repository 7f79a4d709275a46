"""Vision Transformers with the AugReg recipes and checkpoints for Keras 3."""
