"""Joules that can be defended: NVML and RAPL meters, and the ledger of what a gate saved."""
