"""One module per process: settings become running objects; only these name a backend."""
