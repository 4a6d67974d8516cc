"""Engine ray: the apps on persistent Ray workers."""
