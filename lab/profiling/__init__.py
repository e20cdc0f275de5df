"""Why a kernel takes the time that it takes: rooflines, resources and counters."""
