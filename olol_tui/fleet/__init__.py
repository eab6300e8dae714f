"""State of the cluster: snapshot, controller, desired state."""
