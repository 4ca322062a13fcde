//go:build !long

package image

// failingFormats are those under which each operation on the cache fails, failingStep
// how far these lie apart.
var failingFormats = []string{"estargz"}

const failingStep = 5
