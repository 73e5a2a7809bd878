"""NVML and RAPL meters, and the savings of a gate by three definitions."""
