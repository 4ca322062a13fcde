//go:build long

package image

// How much there is where time is not short.
const (
	wideDirectory  = 100_000
	manyFiles      = 120_000
	workerKills    = 200
	upgrades       = 100
	systemdStrikes = 25      // of each kind
	roomStep       = 4 << 10 // bytes, by which the room on a full disk grows
	bombSize       = 1 << 30 // bytes; more than any table of contents may have
)

// leftOutBombs are those that are not tried.
var leftOutBombs []string

// stormFormats are those whose readers live through deaths of workers, upgradeFormats
// through upgrades.
var (
	stormFormats   = []string{"estargz", "zstdchunked", "soci2"}
	upgradeFormats = []string{"estargz", "zstdchunked", "soci2"}
)

// faultFormats are those that meet every fault of a registry.
var faultFormats = []string{"estargz", "zstdchunked", "gzip", "zstd", "tar"}
