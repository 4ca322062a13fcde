package sys

import (
	"os"
	"testing"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

func TestMain(m *testing.M) {
	beReader()
	leaktest.Main(m)
}

// ok fails the test unless err is nil.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempFile makes an open file in a directory of the test's own; it closes with
// the test.
func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "file")
	ok(t, err)
	t.Cleanup(func() { ok(t, f.Close()) })
	return f
}
