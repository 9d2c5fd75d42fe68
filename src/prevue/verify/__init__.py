"""`prevue verify`: the named invariants of the design, checked on the live store, cluster and conversations. It changes nothing."""
