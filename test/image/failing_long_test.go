//go:build long

package image

// failingFormats are those under which each operation on the cache fails, failingStep
// how far these lie apart.
var failingFormats = []string{"estargz", "zstdchunked", "soci2", "gzip"}

const failingStep = 1
