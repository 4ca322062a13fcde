// Package image mounts images with the built binary and compares them with what
// an unpacker of its own makes of their layers; and it has real readers, real
// registries, and real deaths of either.
package image

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	beReaders()
	instance.Main(m)
}
