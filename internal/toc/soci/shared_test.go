package soci_test

import (
	"errors"
	"runtime"
	"testing"

	flatbuffers "github.com/google/flatbuffers/go"

	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/soci"
)

// shared is a zTOC with a list of n files, all of which are one, that has a list of m
// records, all of which are one.
func shared(n, m int) []byte {
	b := flatbuffers.NewBuilder(4*(n+m) + 64<<10)
	list := func(n int, of flatbuffers.UOffsetT) flatbuffers.UOffsetT {
		b.StartVector(4, n, 4)
		for range n {
			b.PrependUOffsetT(of)
		}
		return b.EndVector(n)
	}
	version, tool := b.CreateString(soci.Version), b.CreateString("x")
	key, value := b.CreateString("a"), b.CreateString("b")
	b.StartObject(2)
	b.PrependUOffsetTSlot(0, key, 0)
	b.PrependUOffsetTSlot(1, value, 0)
	pax := list(m, b.EndObject())
	name, kind := b.CreateString("f"), b.CreateString("reg")
	b.StartObject(14)
	b.PrependUOffsetTSlot(0, name, 0)
	b.PrependUOffsetTSlot(1, kind, 0)
	b.PrependInt64Slot(2, 512, 0)
	b.PrependUOffsetTSlot(13, pax, 0)
	files := list(n, b.EndObject())
	b.StartObject(1)
	b.PrependUOffsetTSlot(0, files, 0)
	contents := b.EndObject()
	// One checkpoint, of spans of 4 MiB, behind a gzip header.
	points := b.CreateByteVector(append([]byte{1, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 10}, make([]byte, 7+8+1+32<<10)...))
	digests := list(1, b.CreateString("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"))
	b.StartObject(4)
	b.PrependUOffsetTSlot(2, digests, 0)
	b.PrependUOffsetTSlot(3, points, 0)
	info := b.EndObject()
	b.StartObject(6)
	b.PrependUOffsetTSlot(0, version, 0)
	b.PrependUOffsetTSlot(1, tool, 0)
	b.PrependInt64Slot(2, 1000, 0)
	b.PrependInt64Slot(3, 10_000, 0)
	b.PrependUOffsetTSlot(4, contents, 0)
	b.PrependUOffsetTSlot(5, info, 0)
	b.Finish(b.EndObject())
	return b.FinishedBytes()
}

// What a zTOC says very often with few bytes is refused before there is memory for it.
func TestSharedTablesTakeNoMemory(t *testing.T) {
	if _, err := soci.Open(t.Context(), mem.New(shared(1, 100)), 1000); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		files, records int
		want           error
	}{
		"records of one file": {1, 3_000_000, toc.ErrLimit},
		"files":               {1_000_000, 0, toc.ErrInvalid},
		"records of many":     {20, 1_500_000, toc.ErrLimit},
	} {
		z := shared(c.files, c.records)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := soci.Open(t.Context(), mem.New(z), 1000)
		runtime.ReadMemStats(&after)
		// Records that may be there take 32 bytes each, and the zTOC itself is there twice.
		took, most := after.TotalAlloc-before.TotalAlloc, uint64(3*len(z))
		if c.records < toc.MaxEntries {
			most += uint64(c.records) * 32
		}
		if !errors.Is(err, c.want) || took > most {
			t.Errorf("%s: %d bytes of zTOC took %d: %v", what, len(z), took, err)
		}
	}
}
