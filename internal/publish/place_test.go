package publish_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/bits"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	gcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// hasty is a place that is content before it has read what it is given to the end, as a
// registry is that answers when it has all bytes, or has the blob from somebody else.
type hasty struct {
	publish.Place
	short int64 // how many bytes it leaves
}

func (h *hasty) Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	data := make([]byte, max(0, d.Size-h.short))
	if _, err := io.ReadFull(body, data); err != nil {
		return err
	}
	if h.short > 0 {
		return nil // which would not do for who reads it, of whom there is none here
	}
	return h.Place.Blob(ctx, d, bytes.NewReader(data))
}

// A place need not wait for the end of what it is given.
func TestPlaceIsHasty(t *testing.T) {
	r := ocitest.New(t)
	amd, files, _ := image(t, "amd64")
	ref := r.Push(t, "app:1", amd)
	for _, short := range []int64{0, 1, 50_000} {
		dir := filepath.Join(t.TempDir(), "l")
		to := &hasty{layout(t, dir), short}
		if _, err := publish.Index(t.Context(), whole(t, ref, options()), to, index(2, "x")); err != nil {
			t.Errorf("%d bytes before the end: %v", short, err)
			continue
		}
		if short == 0 {
			compareFiles(t, "oci-layout:"+dir+":x", "", 2, files)
		}
	}
}

// busyError is one that may pass.
type busyError struct{ error }

func (busyError) Temporary() bool { return true }

// busy is a place that breaks off each blob once, in its middle.
type busy struct {
	publish.Place
	mu   sync.Mutex
	seen map[string]bool
}

func (b *busy) Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	b.mu.Lock()
	again := b.seen[d.Digest.String()]
	b.seen[d.Digest.String()] = true
	b.mu.Unlock()
	if again {
		return b.Place.Blob(ctx, d, body)
	}
	if _, err := io.CopyN(io.Discard, body, d.Size/2); err != nil {
		return err
	}
	return busyError{errors.New("503")}
}

// A place that fails for a while costs another reading and nothing else.
func TestPlaceIsBusy(t *testing.T) {
	r := ocitest.New(t)
	amd, files, _ := image(t, "amd64")
	ref := r.Push(t, "app:1", amd)
	dir := filepath.Join(t.TempDir(), "l")
	var done, total int64
	o := index(2, "x")
	o.Report.Read = func(n, of int64) {
		if done, total = n, of; n > of || n < 0 {
			t.Errorf("%d of %d bytes are read", n, of)
		}
	}
	to := &busy{Place: layout(t, dir), seen: make(map[string]bool)}
	if _, err := publish.Index(t.Context(), whole(t, ref, options()), to, o); err != nil {
		t.Fatal(err)
	}
	if done != total {
		t.Errorf("%d of %d bytes are read", done, total)
	}
	compareFiles(t, "oci-layout:"+dir+":x", "", 2, files)
}

// A layer that nobody can index is no reason to leave the others without an index, nor
// not to put it.
func TestLayersThatCannotBeIndexed(t *testing.T) {
	r := ocitest.New(t)
	good := toctest.Tar(t, []toctest.File{text("x", "good"), filler("f")})
	img := ocitest.ImageFor(t, gcr.Platform{OS: "linux", Architecture: "amd64"})
	for _, blob := range [][]byte{
		packed(t, good), toctest.Random(1, 100_000), packed(t, toctest.Random(2, 100_000)),
		packed(t, good)[:200_000], packed(t, good[:100_000]), oneBlock(t, 40<<20),
	} {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: gzipLayer{static.NewLayer(blob, types.OCILayer), good}, MediaType: types.OCILayer})
		if err != nil {
			t.Fatal(err)
		}
	}
	ref := r.Push(t, "app:1", img)
	dir := filepath.Join(t.TempDir(), "l")
	for what, to := range map[string]publish.Place{"pushed": upload(t, ref, options()), "written": layout(t, dir)} {
		var notes []string
		o := index(2, "x")
		o.SpanSize = publish.MaxSpanSize
		o.Report.Note = func(s string) { notes = append(notes, s) }
		made, err := publish.Index(t.Context(), whole(t, ref, options()), to, o)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if len(notes) != 5 || made.Images[0].Ztocs != 1 || made.Images[0].Layers != 6 {
			t.Errorf("%s: %+v, notes:\n%s", what, made.Images, strings.Join(notes, "\n"))
		}
	}
	if layers, _ := layersOf(t, "oci-layout:"+dir+":x"); len(layers) != 6 {
		t.Errorf("%d layers are written", len(layers))
	}
}

// oneBlock is a layer with a file of n zeros, all of it one block of deflate, inside of
// which nobody can begin (RFC 1951, section 3.2.6).
func oneBlock(t *testing.T, n int) []byte {
	tar := toctest.Tar(t, []toctest.File{toctest.Reg("zeros", make([]byte, n))})
	var out bytes.Buffer
	out.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
	var held uint64
	var have int
	put := func(value uint64, n int) {
		held |= value << have
		for have += n; have >= 8; have -= 8 {
			out.WriteByte(byte(held))
			held >>= 8
		}
	}
	code := func(value uint64, n int) { put(bits.Reverse64(value)>>(64-n), n) } // the first bit first
	put(1|1<<1, 3)                                                              // the last block, of fixed codes
	for i := 0; i < len(tar); {
		run := 1
		for ; i > 0 && tar[i] == tar[i-1] && run < 258 && i+run < len(tar) && tar[i+run] == tar[i]; run++ {
		}
		if run == 258 {
			code(0b11000101, 8) // as many bytes as the longest match has
			code(0, 5)          // like the byte before
			i += run
			continue
		}
		if tar[i] < 144 {
			code(0b00110000+uint64(tar[i]), 8)
		} else {
			code(0b110010000+uint64(tar[i]-144), 9)
		}
		i++
	}
	code(0, 7)
	put(0, 7)
	end := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(tar))
	out.Write(binary.LittleEndian.AppendUint32(end, uint32(len(tar))))
	return out.Bytes()
}
