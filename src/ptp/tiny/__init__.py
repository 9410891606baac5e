"""The embedded model ``ptp-tiny``: its weights, its recipe and the pictures it is asked about."""
