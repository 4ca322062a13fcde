package cache_test

import (
	"os"
	"testing"

	"github.com/lacunafs/lacuna/internal/cache"
)

func TestHolderIsWhoHasTheRoot(t *testing.T) {
	dir := t.TempDir()
	want := func(want int) {
		t.Helper()
		if pid, err := cache.Holder(dir); err != nil || pid != want {
			t.Fatalf("holder %d, %v; want %d", pid, err, want)
		}
	}
	want(0)
	root, err := cache.OpenRoot(dir, cache.RootOptions{AllowAnyFilesystem: true})
	if err != nil {
		t.Fatal(err)
	}
	want(os.Getpid())
	want(os.Getpid()) // looking does not take it
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	want(0)
}
