//go:build long

package cache

// crashHistories is how many random lives of a root TestMachineCrash tries.
const crashHistories = 20000
