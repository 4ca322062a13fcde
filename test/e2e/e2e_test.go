// Package e2e runs the built binary: real instances, real servers, real readers
// in processes of their own, and real deaths of any of them. The storms are long
// with the build tag long.
package e2e

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
	"github.com/lacunafs/lacuna/test/instance"
)

func TestMain(m *testing.M) {
	ondemandtest.BeReader()
	beStormReader()
	beHolder()
	beDaemon()
	beMany()
	instance.Main(m)
}

// lacuna is an instance and its test.
type lacuna struct {
	*instance.Instance
	t *testing.T
}

// newLacuna makes an instance that does not run yet. config is TOML.
func newLacuna(t *testing.T, config string) *lacuna {
	t.Helper()
	return &lacuna{instance.New(t, config), t}
}
