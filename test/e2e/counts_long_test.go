//go:build long

package e2e

// How often things happen where time is not short.
const (
	workerKills   = 200
	upgrades      = 200
	bindKills     = 50
	bindWorkerEnd = 20
)
