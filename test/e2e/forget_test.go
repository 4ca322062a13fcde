package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// Data that could not be recognised again goes with its last file, and so does the
// filesystem image that showed it, whichever way it goes.
func TestNothingStaysOfWhatCannotBeRecognised(t *testing.T) {
	i := newLacuna(t, "")
	i.StartDaemon()
	data := pattern(stormSeed, 7, 300_001)
	left := func() (left []string) {
		for _, pattern := range []string{"objects/*/*", "files/*"} {
			found, err := filepath.Glob(filepath.Join(i.Root, pattern))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return left
	}
	for _, how := range [][]string{{"detach"}, {"detach", "--hydrate"}} {
		server := sourcetest.NewServer(t, data)
		server.SetETag("")
		server.SetModTime(time.Time{})
		file := filepath.Join(i.Dir, "file")
		i.Lacuna("attach", server.URL(), file)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%v, %d bytes", err, len(got))
		}
		if n := len(left()); n != 2 {
			t.Errorf("%d objects and images", n)
		}
		i.Lacuna(append(slices.Clone(how), file)...)
		if left := left(); len(left) > 0 {
			t.Errorf("%v: left: %v", how, left)
		}
		if err := os.RemoveAll(file); err != nil {
			t.Error(err)
		}
	}
}
