//go:build tools

// A Cloud Tasks server in memory, for tests and demonstrations.
package tools

import (
	_ "github.com/aertje/cloud-tasks-emulator"
)
