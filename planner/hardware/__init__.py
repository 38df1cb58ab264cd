"""Hardware: the inventory of hosts, devices and links, the catalogue of GPU types, and detection by NVML."""
