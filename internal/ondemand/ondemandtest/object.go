package ondemandtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Bytes is the content of r in the test object of that seed. No byte is zero,
// and the content differs from object to object and from block to block.
//
// A block is 8 bytes of its own and then a window of the noise: making it is
// one copy, which costs little under the race detector too.
func Bytes(seed int64, r ondemand.Range) []byte {
	first, skip := r.Off/ondemand.BlockSize, r.Off%ondemand.BlockSize
	p := make([]byte, ondemand.BlockCount(skip+r.Len)*ondemand.BlockSize)
	for at, block := 0, first; at < len(p); at, block = at+ondemand.BlockSize, block+1 {
		h := mix(uint64(seed), uint64(block))
		copy(p[at:at+ondemand.BlockSize], noise()[h>>48:])
		binary.LittleEndian.PutUint64(p[at:], h|ones)
	}
	return p[skip : skip+r.Len : skip+r.Len]
}

// ones keeps each byte of a word from being zero.
const ones = 0x0101010101010101

// noise is bytes that are not zero: a block may start at any of the first 1<<16.
var noise = sync.OnceValue(func() []byte {
	p := make([]byte, 1<<16+ondemand.BlockSize)
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], mix(1, uint64(at))|ones)
	}
	return p
})

func mix(seed, n uint64) uint64 {
	x := n*0x9e3779b97f4a7c15 + seed*0xbf58476d1ce4e5b9
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
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
