//go:build !long && !race

package cache

// crashHistories is how many random lives of a root TestMachineCrash tries.
const crashHistories = 2000
