"""The deployer: takes requests, claims previews, runs Helm, tells."""
