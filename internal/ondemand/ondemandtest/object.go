package ondemandtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Byte is the content of every test object: it is never zero, and differs from
// object to object and from place to place.
func Byte(seed, off int64) byte {
	x := uint64(off)*0x9e3779b97f4a7c15 + uint64(seed)*0xbf58476d1ce4e5b9
	x ^= x >> 29
	return byte(x%255) + 1
}

// Bytes is the content of r.
func Bytes(seed int64, r ondemand.Range) []byte {
	p := make([]byte, r.Len)
	for i := range p {
		p[i] = Byte(seed, r.Off+int64(i))
	}
	return p
}

// Object is a sparse file with a presence map; Write fills a part of it.
type Object struct {
	*ondemand.Presence
	Path string
	Seed int64
	id   ondemand.ObjectID
	file *os.File
	// Incomplete makes Complete say no although all is present.
	Incomplete atomic.Bool
}

// NewObject makes a sparse file of size bytes in dir.
func NewObject(t testing.TB, dir string, seed, size int64) *Object {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprintf("object-%d", seed))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Object{
		Presence: ondemand.NewPresence(size), Path: path, Seed: seed, file: f,
		id: ondemand.ObjectID(fmt.Sprintf("%064x", seed)),
	}
}

// ID is made of the seed.
func (o *Object) ID() ondemand.ObjectID { return o.id }

// Complete is the Presence's answer, unless Incomplete is set.
func (o *Object) Complete() bool { return !o.Incomplete.Load() && o.Presence.Complete() }

// Write puts r's right bytes into the file and makes them present.
func (o *Object) Write(r ondemand.Range) error {
	r = r.Blocks(o.Size())
	if _, err := o.file.WriteAt(Bytes(o.Seed, r), r.Off); err != nil {
		return err
	}
	o.Set(r)
	return nil
}

// FillFunc is a Filler in one function.
type FillFunc func(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error

// Fill calls f.
func (f FillFunc) Fill(ctx context.Context, id ondemand.ObjectID, r ondemand.Range) error {
	return f(ctx, id, r)
}
