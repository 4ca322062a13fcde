//go:build !long && race

package cache

// crashHistories is how many random lives of a root TestMachineCrash tries, fewer
// where each takes ten times as long.
const crashHistories = 200
