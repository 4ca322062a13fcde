// Package manifest mounts lists of files with the built binary, from servers that
// serve them well and badly.
package manifest

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	instance.Main(m)
}
