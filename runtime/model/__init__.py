"""Model: arithmetic of the base model on one device."""
