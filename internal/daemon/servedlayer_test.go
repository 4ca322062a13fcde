package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// What lies in a file is not looked for while a mount is made, and what lies in a
// registry is known then to be asked for.
func TestLayersInFilesAreOpenedWhenTheyAreRead(t *testing.T) {
	data := sourcetest.Bytes(100)
	opened := 0
	var fails error
	open := func(context.Context) (source.Blob, error) {
		opened++
		return mem.New(data), fails
	}
	blob, err := openLater(t.Context(), origin{Kind: originLayer}, 100, open)
	if err != nil || opened != 0 || blob.Size() != 100 {
		t.Fatalf("opened %d times: %v", opened, err)
	}
	fails = source.ErrNotFound
	if _, err := blob.ReadRange(t.Context(), 0, 10); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("it is not there: %v", err)
	}
	fails = nil
	sourcetest.MustRead(t, blob, data, 10, 50)
	if err := blob.Close(); err != nil || opened != 2 {
		t.Errorf("opened %d times: %v", opened, err)
	}
	opened = 0
	if blob, err = openLater(t.Context(), origin{Kind: originLayer, group: "registry r.example"}, 100, open); err != nil || opened != 1 {
		t.Fatalf("opened %d times: %v", opened, err)
	}
	if err := blob.Close(); err != nil {
		t.Error(err)
	}
}
