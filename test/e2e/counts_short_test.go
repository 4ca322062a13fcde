//go:build !long

package e2e

// How often things happen where time is short.
const (
	workerKills   = 25
	upgrades      = 20
	bindKills     = 10
	bindWorkerEnd = 20
	attachedFiles = 500
)

// realFile makes the file that nginx serves.
func realFile(path string) error { return tarFile(path) }
