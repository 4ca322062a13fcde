//go:build !long

package image

// How much there is where time is short.
const (
	wideDirectory  = 5_000
	manyFiles      = 12_000
	workerKills    = 20
	upgrades       = 10
	systemdStrikes = 1         // of each kind
	roomStep       = 64 << 10  // bytes, by which the room on a full disk grows
	bombSize       = 300 << 20 // bytes; more than any table of contents may have
)

// leftOutBombs take long to refuse.
var leftOutBombs = []string{"estargz, says little", "zstd, much of zeros"}

// stormFormats are those whose readers live through deaths of workers, upgradeFormats
// through upgrades.
var (
	stormFormats   = []string{"estargz", "zstdchunked"}
	upgradeFormats = []string{"estargz"}
)

// faultFormats are those that meet every fault of a registry.
var faultFormats = []string{"estargz", "gzip"}
