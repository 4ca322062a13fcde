package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// peak is the most memory that a process has had so far (VmHWM of proc_pid_status(5)).
func peak(t testing.TB, pid int) (mib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest + " nothing")[0])
	if err != nil {
		t.Fatalf("VmHWM of process %d: %v", pid, err)
	}
	return kib >> 10
}

// repeated is n bytes of a text, again and again.
type repeated struct {
	text string
	n    int64
}

func (r *repeated) Read(p []byte) (n int, err error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	n = int(min(int64(len(p)), r.n))
	size := int64(len(r.text))
	at := (size - r.n%size) % size // the text ends where all of it ends
	for filled := 0; filled < n; at = 0 {
		filled += copy(p[filled:n], r.text[at:])
	}
	r.n -= int64(n)
	return n, nil
}

// again is text that is long enough to be copied fast.
func again(text string) string { return strings.Repeat(text, 1+(64<<10)/len(text)) }

// compressed is what r has, in a codec.
func compressed(t testing.TB, codec string, r io.Reader) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch codec {
	case "gzip":
		z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case "zstd":
		z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = z
	}
	_, err := io.Copy(w, r)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// headerOf is the header of a tar's member of n bytes.
func headerOf(t testing.TB, h tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// entriesOf is a table of contents of about n bytes, in a codec: a text again and again.
func entriesOf(text string, n int64) io.Reader {
	text = again(text)
	n -= n % int64(len(text))
	return io.MultiReader(strings.NewReader(`{"version":1,"entries":[`), &repeated{text, n}, strings.NewReader(`{"name":"end","type":"reg"}]}`))
}

// eStargzOf is a layer with a table of contents and nothing else.
func eStargzOf(t testing.TB, size int64, table io.Reader) *layer {
	t.Helper()
	blob := compressed(t, "gzip", bytes.NewReader(tarOf(t, file("file", "data"))))
	at := len(blob)
	head := headerOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: size})
	blob = append(blob, compressed(t, "gzip", io.MultiReader(bytes.NewReader(head), table))...)
	blob = append(blob, stargz.CreateGzipFooter([]byte(fmt.Sprintf("SG\x16\x00%016xSTARGZ", at)))...)
	return &layer{blob: blob, tar: []byte("unknown"), mediaType: types.OCILayer, annotations: map[string]string{tocDigest: noDigest.String()}}
}

// zstdChunkedOf is one too. The footer is that of docs of containers/storage
// (pkg/chunked/internal, ZstdChunkedFooterData): offset, both lengths, kind, magic.
func zstdChunkedOf(t testing.TB, says uint64, table io.Reader) *layer {
	t.Helper()
	blob := compressed(t, "zstd", bytes.NewReader(tarOf(t, file("file", "data"))))
	at, text := len(blob)+8, compressed(t, "zstd", table)
	skippable := func(b []byte) {
		head := make([]byte, 8)
		binary.LittleEndian.PutUint32(head, 0x184D2A50)
		binary.LittleEndian.PutUint32(head[4:], uint32(len(b)))
		blob = append(append(blob, head...), b...)
	}
	skippable(text)
	footer := binary.LittleEndian.AppendUint64(nil, uint64(at))
	footer = binary.LittleEndian.AppendUint64(footer, uint64(len(text)))
	footer = binary.LittleEndian.AppendUint64(footer, says)
	footer = binary.LittleEndian.AppendUint64(footer, 1)
	skippable(append(footer, "GNUlInUx"...))
	position := fmt.Sprintf("%d:%d:%d:1", at, len(text), says)
	return &layer{blob: blob, tar: []byte("unknown"), mediaType: types.OCILayerZStd, annotations: map[string]string{
		tocDigest: noDigest.String(), "io.github.containers.zstd-chunked.manifest-checksum": noDigest.String(),
		"io.github.containers.zstd-chunked.manifest-position": position,
	}}
}

// bombs are layers that are small and decode to much. What of the memory for them is
// taken is not more than of the largest that is accepted.
func bombs(t testing.TB) map[string]*layer {
	size := int64(bombSize)
	zeros := &repeated{again("\x00"), 1 << 62}
	plain := func(codec string, h tar.Header, data io.Reader) *layer {
		kind := types.OCILayer
		if codec == "zstd" {
			kind = types.OCILayerZStd
		}
		return &layer{blob: compressed(t, codec, io.MultiReader(bytes.NewReader(headerOf(t, h)), data)), tar: []byte("unknown"), mediaType: kind}
	}
	// One frame of zeros again and again.
	frames := compressed(t, "zstd", bytes.NewReader(headerOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "bomb", Size: 1 << 40, Format: tar.FormatGNU})))
	frame := compressed(t, "zstd", io.LimitReader(zeros, 64<<20))
	for range 64 {
		frames = append(frames, frame...)
	}
	long := func(typeflag byte) *layer {
		// archive/tar writes no such header by itself.
		h := headerOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "long", Size: bombSize, Format: tar.FormatGNU})
		return plain("gzip", tar.Header{Typeflag: tar.TypeReg, Name: "before"}, io.MultiReader(bytes.NewReader(retyped(h, typeflag)), io.LimitReader(&repeated{again("n"), size}, size)))
	}
	return map[string]*layer{
		"estargz, all of spaces":        eStargzOf(t, size, &repeated{again(" "), size}),
		"estargz, all in one name":      eStargzOf(t, size, io.MultiReader(strings.NewReader(`{"version":1,"entries":[{"name":"`), &repeated{again("n"), size - 33})),
		"estargz, all of entries":       eStargzOf(t, size, io.LimitReader(entriesOf(`{"name":"a/b","type":"dir","mode":493},`, size), size)),
		"estargz, says little":          eStargzOf(t, 250<<20, io.LimitReader(entriesOf(`{"name":"a/b","type":"dir","mode":493},`, size), size)),
		"zstdchunked, all of spaces":    zstdChunkedOf(t, bombSize, &repeated{again(" "), size}),
		"zstdchunked, all of entries":   zstdChunkedOf(t, bombSize, entriesOf(`{"name":"a/b","type":"dir","mode":493},`, size)),
		"zstdchunked, says little":      zstdChunkedOf(t, 200<<20, entriesOf(`{"name":"a/b","type":"dir","mode":493},`, size)),
		"zstd, much of zeros":           {blob: frames, tar: []byte("unknown"), mediaType: types.OCILayerZStd},
		"gzip, all of a long name":      long('L'),
		"gzip, all of a long link":      long('K'),
		"gzip, all of PAX records":      long('x'),
		"gzip, all of global records":   long('g'),
		"gzip, much behind the archive": plain("gzip", tar.Header{Typeflag: tar.TypeReg, Name: "file"}, &repeated{again("\x00"), 2 * bombSize}),
	}
}

// retyped is a tar header of another type.
func retyped(h []byte, typeflag byte) []byte {
	h = bytes.Clone(h)
	h[156] = typeflag
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

// maxEntriesPeak is the memory, in MiB, of a worker that reads as many entries as are
// accepted (toc.MaxEntries), and maxPeak of one that refuses anything else.
const maxEntriesPeak, maxPeak = 1536, 200

// Layers that decode to much are refused, in memory that is bounded.
func TestBombsAreRefused(t *testing.T) {
	r := ocitest.New(t)
	m := start(t, "")
	for name, l := range bombs(t) {
		if slices.Contains(leftOutBombs, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			m := &mounted{m.For(t), t}
			image := &packed{format: format{name: "bomb"}, layers: []*layer{l}}
			image.build(t)
			last := m.WaitWorker(0)
			m.Kill(last) // so that the memory is that of this layer alone
			worker := m.WaitWorker(last)
			m.WaitReady()
			m.refused(image, image.push(t, r), "layer", 1, 4)
			mib, limit := peak(t, worker), maxPeak
			if strings.HasSuffix(name, "says little") {
				limit = maxEntriesPeak
			}
			t.Logf("a blob of %d KiB; the worker has had %d MiB", len(l.blob)>>10, mib)
			if mib > limit {
				t.Errorf("the worker has had %d MiB, want at most %d", mib, limit)
			}
		})
	}
}
