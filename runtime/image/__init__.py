"""Image: verifies, maps and copies a device's image, and allocates the planned buffers."""
